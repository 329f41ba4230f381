"""What is known of data sets by name, with nothing of them here."""

import pytest

from aigc_jax.data.describe import describe
from aigc_jax.data.images import DataError
from aigc_jax.family import DataSpec, Field


def spec(shape, classes=0, kind="image", other=False):
    field = Field(kind, shape)
    fields = {"x": field} | ({"other": field} if other else {})
    return DataSpec(fields, {"label": Field("label", (), classes)} if classes else {}, {})


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"name": "cifar10"}, spec((32, 32, 3), 10)),
        ({"name": "mnist"}, spec((28, 28, 1), 10)),
        ({"name": "mnist", "channels": 3, "image_size": 32}, spec((32, 32, 3), 10)),
        ({"name": "digits"}, spec((8, 8, 1), 10)),
        ({"name": "stacked_mnist"}, spec((28, 28, 3), 1000)),
        ({"name": "celeb_a", "crop": 140, "image_size": 64}, spec((64, 64, 3))),
        ({"name": "ring"}, spec((2,), kind="points")),
        ({"name": "folder", "image_size": 64, "classes": 5}, spec((64, 64, 3), 5)),
        ({"name": "folder", "shape": (8, 16, 1)}, spec((8, 16, 1))),
        (
            {"name": "cycle_gan/maps", "image_size": 128, "train_split": "trainA+trainB"},
            spec((128, 128, 3), other=True),
        ),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)
def test_a_data_set_is_described_by_its_name(settings, found, tmp_path):
    described = describe(**settings, data_dir=str(tmp_path))
    assert described == found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "folder"}, "give --image-shape"),
        ({"name": "cifra10"}, "did you mean cifar10"),
        ({"name": "imdb_reviews"}, "no feature 'image'"),
    ],
)
def test_what_nothing_is_known_of_is_refused(settings, told):
    with pytest.raises(DataError, match=told):
        describe(**settings)
