"""Images to codes and back: arrays, files, whole splits."""

import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import build, streams
from aigc_jax.data import datasets
from aigc_jax.family import Codec, DataSpec, Family, Field, Variables
from aigc_jax.runs import apply
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.model import Model
from configs import ddpm_digits, vae_digits

IMAGE, POINTS = Field("image", (4, 4, 1)), Field("points", (2,))


@pytest.fixture(scope="module")
def dataset():
    return datasets.load("digits")


def made(dataset, variant="smoke"):
    config = vae_digits.get_config(variant)
    family = build.build(config, dataset.spec)
    return Model(
        config, dataset.spec, family, Variables(*jax.jit(family.init)(streams.init(0)[0])), 0
    )


@pytest.fixture(scope="module")
def model(dataset):
    return made(dataset)


@pytest.fixture(scope="module")
def conditional(dataset):
    return made(dataset, "smoke+conditional")


@pytest.fixture(scope="module")
def pixels(dataset):
    """(number of images) -> that many test images as stored."""
    return lambda n: dataset.sources["test"].fetch(np.arange(n))["x"]


def toy(codec=None, translate=None, x=IMAGE):
    """A model whose functions are given."""
    family = Family(None, (), None, (), codec=codec, translate=translate)
    variables = Variables({"scale": np.float32(0.5)}, {})
    return Model({"family": "toy"}, DataSpec({"x": x}, {}, {}), family, variables, 0)


def test_codes_of_an_image_do_not_depend_on_the_batch_it_is_in(model, pixels):
    found = apply.encode(model, pixels(21), batch_size=8)
    assert found["mean"].shape == found["logvar"].shape == (21, 4)
    alone = apply.encode(model, pixels(21)[20:])
    np.testing.assert_allclose(found["mean"][20], alone["mean"][0], rtol=1e-5, atol=1e-6)
    assert len(np.unique(found["mean"][:, 0])) > 10


def test_codes_are_decoded_to_bytes(model, pixels):
    z = apply.encode(model, pixels(21))["mean"]
    images = apply.decode(model, z, batch_size=8)
    assert images.shape == (21, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[16:], apply.decode(model, z[16:]))


def test_what_is_applied_is_compiled_once_for_batches_over_all_devices():
    """A batch of 3 is rounded up to the 8 devices, and the last of 21 examples are filled up."""
    traces = []

    def encode(variables, batch):
        traces.append(("encode", batch["x"].shape))
        return {"mean": batch["x"].reshape(-1, 16) * variables.params["scale"]}

    def decode(variables, z, cond):
        traces.append(("decode", z.shape))
        return (z / variables.params["scale"]).reshape(-1, 4, 4, 1)

    def translate(variables, x, direction):
        traces.append((direction, x.shape))
        return -x

    model = toy(Codec(encode, decode, None), translate)
    x = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 1), np.uint8)
    encoded, decoded = (f(model, batch_size=3) for f in (apply.encoder, apply.decoder))
    for part in (x, x[:8]):
        np.testing.assert_array_equal(decoded(encoded(part)["mean"]), part)
    translated = apply.translator(model, "b2a", batch_size=3)
    np.testing.assert_array_equal(translated(x), 255 - x)
    shapes = [("encode", (8, 4, 4, 1)), ("decode", (8, 16)), ("b2a", (8, 4, 4, 1))]
    assert traces == shapes


def test_points_are_encoded_and_decoded_as_they_are():
    """Nothing but files of images assumes that data are images."""
    codec = Codec(lambda v, batch: {"mean": 2 * batch["x"]}, lambda v, z, cond: z / 2, None)
    model = toy(codec, x=POINTS)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    found = apply.encode(model, x)["mean"]
    np.testing.assert_array_equal(found, 2 * x)
    np.testing.assert_array_equal(apply.decode(model, found), x)
    with pytest.raises(ValueError, match="takes points of 2, not 3"):
        apply.encode(model, np.zeros((5, 3), np.float32))


def test_folders_of_images_are_no_points(tmp_path):
    codec = Codec(lambda v, batch: {"mean": batch["x"]}, lambda v, z, cond: z, None)
    model = toy(codec, x=POINTS)
    with pytest.raises(ValueError, match="a folder holds images, but the model's data are points"):
        apply.denoise_folder(model, tmp_path, tmp_path / "out")


def test_a_splits_codes_come_with_the_scale_that_makes_them_standard(model, dataset):
    data = RealData("digits", dataset, "train", "test", model.config["train"]["batch_size"])
    found = apply.encode_split(model, data, "test")
    assert found["mean"].shape == (296, 4)
    np.testing.assert_array_equal(
        found["label"], dataset.sources["test"].fetch(np.arange(296))["label"]
    )
    noise = np.random.default_rng(0).normal(size=(200, *found["mean"].shape))
    z = found["mean"] + np.exp(0.5 * found["logvar"]) * noise
    scaled = (z - found["shift"]) * found["scale"]
    assert abs(scaled.mean()) < 0.01
    assert scaled.std() == pytest.approx(1, abs=0.03)  # of all dimensions, less their own means


def test_a_split_is_read_once(dataset):
    """Its labels too come with the pass that encodes it."""
    read = []

    class Counted:
        def __len__(self):
            return 296

        def fetch(self, indices):
            read.extend(indices)
            return dataset.sources["test"].fetch(indices)

    codec = Codec(lambda v, batch: {"mean": batch["x"]}, lambda v, z, cond: z, None)
    counted = dataset._replace(sources={"test": Counted()})
    data = RealData("digits", counted, "test", "test", 296)
    found = apply.encode_split(toy(codec, x=Field("image", (8, 8, 1))), data, "test")
    assert len(found["label"]) == 296
    assert sorted(read) == list(range(296))


def test_codes_that_are_indices_have_no_scale(dataset):
    def encode(variables, batch):
        return {"index": batch["x"][:, :2, :2, 0] > 0}

    made = toy(Codec(encode, lambda v, z, cond: z, None), x=Field("image", (8, 8, 1)))
    data = RealData("digits", dataset, "train", "test", 8)
    found = apply.encode_split(made, data, "test")
    assert found.keys() == {"index", "label"}
    assert found["index"].shape == (296, 2, 2)


def test_every_image_of_a_folder_is_denoised_under_its_own_name(model, pixels, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, image in enumerate(pixels(3)):
        Image.fromarray(image[..., 0]).resize((16, 16)).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(pixels(4)[3][..., 0]).convert("RGB").save(tmp_path / "in" / "deep" / "x.jpg")
    path = apply.denoise_folder(model, tmp_path / "in", tmp_path / "out", batch_size=2)
    assert path == tmp_path / "out-compared.png"
    assert path.is_file()
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"0.png", "1.png", "2.png", "deep/x.png"}
    assert Image.open(tmp_path / "out" / "0.png").size == (16, 16)  # as it came
    assert Image.open(tmp_path / "out" / "deep" / "x.png").size == (8, 8)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in" / "0.png", "0.png")
    apply.denoise_folder(model, tmp_path / "in.zip", tmp_path / "zipped")
    first, second = (np.asarray(Image.open(tmp_path / f / "0.png")) for f in ("out", "zipped"))
    np.testing.assert_array_equal(first, second)


def test_what_is_denoised_goes_through_the_codes_that_are_decoded(tmp_path):
    """A model of a codebook has indices, no means."""

    def decode(variables, z, cond):
        return z[..., None] - 1.0

    codec = Codec(lambda v, batch: {"index": batch["x"][..., 0] + 1}, decode, None, code="index")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "in" / "0.png")
    apply.denoise_folder(toy(codec), tmp_path / "in", tmp_path / "out")
    assert (np.asarray(Image.open(tmp_path / "out" / "0.png")) == 9).all()


def test_the_last_images_of_a_folder_are_filled_up_to_a_whole_batch(tmp_path):
    """What they are put through sees one shape, hence compiles once."""
    traces = []

    def translate(variables, x, direction):
        traces.append(x.shape)
        return -x

    (tmp_path / "in").mkdir()
    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / "in" / f"{i}.png")
    model = toy(translate=translate)
    apply.translate_folder(model, tmp_path / "in", tmp_path / "out", "a2b", batch_size=16)
    assert traces == [(16, 4, 4, 1)]
    for i in range(20):
        found = np.asarray(Image.open(tmp_path / "out" / f"{i}.png"))
        np.testing.assert_array_equal(found, np.full((4, 4), 255 - i))


def test_the_images_of_a_folder_come_in_batches(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / f"{i}.png")
    given = []

    def change(images):
        given.append(images)
        return 255 - images

    def make(size):
        assert size == 3
        return change

    apply.each_image(toy(), tmp_path / "in", tmp_path / "out", make, "changing", batch_size=3)
    assert [len(images) for images in given] == [3, 2]
    np.testing.assert_array_equal(given[1], x[3:])
    for i, image in enumerate(x):
        found = np.asarray(Image.open(tmp_path / "out" / f"{i}.png"))
        np.testing.assert_array_equal(found, 255 - image[..., 0])
    with Image.open(tmp_path / "out-compared.png") as compared:
        assert compared.size == (5 * 66 + 2, 2 * 66 + 2)


def test_what_cannot_be_denoised_is_told(model, conditional, tmp_path):
    with pytest.raises(ValueError, match=r"no folder or .zip of images at .*: set --input"):
        apply.denoise_folder(model, tmp_path / "gone", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        apply.denoise_folder(model, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png"):
        apply.denoise_folder(model, tmp_path / "bad", tmp_path / "out")
    with pytest.raises(ValueError, match="needs the labels"):
        apply.denoise_folder(conditional, tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_encoded_is_told(model, conditional, dataset, pixels):
    with pytest.raises(ValueError, match="takes images of 8x8x1, not 28x28x1"):
        apply.encode(model, np.zeros((2, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match="given as they are stored, as uint8, not as float64"):
        apply.encode(model, np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="needs the labels"):
        apply.encode(conditional, pixels(2))
    with pytest.raises(ValueError, match="needs the labels"):
        apply.decode(conditional, np.zeros((2, 4), np.float32))
    assert apply.encode(conditional, pixels(2), np.array([1, 2]))["mean"].shape == (2, 4)
    config = ddpm_digits.get_config("smoke")
    family = build.build(config, dataset.spec)
    with pytest.raises(ValueError, match="has neither an encoder nor a decoder"):
        apply.encode(Model(config, dataset.spec, family, Variables({}, {}), 0), pixels(2))
    other = toy()
    data = RealData("digits", dataset, "train", "test", 8)
    with pytest.raises(ValueError, match="has neither an encoder nor a decoder"):
        apply.encode_split(other, data, "test")
    with pytest.raises(ValueError, match="has no decoder"):
        apply.encode_split(toy(Codec(abs, None, None)), data, "test")
    codec = Codec(lambda v, batch: {"mean": batch["x"]}, lambda v, z, cond: z, None)
    with pytest.raises(ValueError, match="takes images of 4x4x1, not 8x8x1"):
        apply.encode_split(toy(codec), data, "test")


def test_what_cannot_be_translated_is_told():
    with pytest.raises(ValueError, match="this model does not translate"):
        apply.translate(toy(), np.zeros((2, 4, 4, 1), np.uint8), "a2b")
    model = toy(translate=lambda variables, x, direction: x)
    with pytest.raises(ValueError, match="the direction is one of a2b, b2a, not 'b2c'"):
        apply.translate(model, np.zeros((2, 4, 4, 1), np.uint8), "b2c")
    with pytest.raises(ValueError, match="takes images of 4x4x1, not 8x8x1"):
        apply.translate(model, np.zeros((2, 8, 8, 1), np.uint8), "a2b")
