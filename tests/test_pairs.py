"""Two domains as one split: what meets what, as a function of (seed, step); folders of domains."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aigc_jax import judging
from aigc_jax.data import augment, datasets, loader
from aigc_jax.data.images import DataError
from aigc_jax.data.pairs import Pairs, parts
from aigc_jax.data.sources import ArraySource
from aigc_jax.training import loop, sharding
from configs import cyclegan_maps


def numbered(first, count, side=2, channels=3):
    """Images that say their own number, from `first` on, in every pixel; labels to be dropped."""
    number = np.arange(first, first + count, dtype=np.uint8)
    pixels = np.broadcast_to(number[:, None, None, None], (count, side, side, channels))
    return ArraySource(np.ascontiguousarray(pixels), number.astype(np.int32))


def pairs(a=12, b=12):
    return Pairs(numbered(0, a), numbered(100, b))


def take(source, count, **options):
    """Numbers [count, 2, fresh * batch] of A and B in the first batches."""
    options = {"batch_size": 4, "seed": 0} | options
    iterator = loader.batches(source, **options)
    found = []
    for batch in itertools.islice(iterator, count):
        assert batch.keys() == {"image", "other"}
        found.append([batch[k][..., 0, 0, 0].reshape(-1) for k in ("image", "other")])
    iterator.close()
    return np.array(found)


def test_batches_of_two_domains_are_a_function_of_seed_and_step():
    whole = take(pairs(), 20)
    np.testing.assert_array_equal(whole, take(pairs(), 20, num_threads=1, prefetch=1))
    np.testing.assert_array_equal(whole[7:], take(pairs(), 13, start=7))
    assert (whole != take(pairs(), 20, seed=1)).any()
    halves = [take(pairs(), 20, process_index=i, process_count=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=2), whole)
    single = take(pairs(), 12, batch_size=1)  # the published batch
    np.testing.assert_array_equal(np.sort(single[:, 0, 0]), np.arange(12))


def test_every_image_of_both_domains_comes_once_an_epoch_and_meets_another_each_time():
    a, b = take(pairs(), 24).transpose(1, 0, 2).reshape(2, 8, 12)
    for epoch in range(8):
        np.testing.assert_array_equal(np.sort(a[epoch]), np.arange(12))
        np.testing.assert_array_equal(np.sort(b[epoch]), 100 + np.arange(12))
    met = collections.defaultdict(set)
    for i, j in zip(a.ravel(), b.ravel(), strict=True):
        met[i].add(j)
    # Of 12, eight draws name 6 on average; always the same partner would be 1.
    assert np.mean([len(partners) for partners in met.values()]) > 4


@pytest.mark.parametrize(("a", "b"), [(12, 4), (4, 12)])
def test_the_smaller_domain_comes_round_evenly(a, b):
    source = pairs(a, b)
    assert len(source) == 12
    for numbers, size in zip(
        take(source, 6).transpose(1, 0, 2).reshape(2, 24), (a, b), strict=True
    ):
        _, counts = np.unique(numbers, return_counts=True)
        np.testing.assert_array_equal(counts, np.full(size, 24 // size))


def test_a_pass_in_order_puts_image_i_beside_image_i():
    batches = list(loader.epoch(pairs(5, 3), batch_size=4))
    mask = np.concatenate([batch["mask"] for batch in batches])
    a, b = (
        np.concatenate([batch[k][:, 0, 0, 0] for batch in batches])[mask > 0]
        for k in ("image", "other")
    )
    np.testing.assert_array_equal(a, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(b, [100, 101, 102, 100, 101])


def test_both_domains_are_augmented_each_by_its_own_chance():
    config = cyclegan_maps.get_config("smoke").unlock()
    config.augment.jitter = 0
    config.data.update({"train_split": "a+b", "test_split": "a+b"})
    ramp = np.arange(16, dtype=np.uint8).reshape(1, 1, 16, 1) * 10
    images = np.broadcast_to(ramp, (64, 16, 16, 3))

    class Two:
        phases = ()

        def init(self, key):
            return {"net": {"w": jnp.zeros(())}}, {}

    prepare = loop.recipe(config, Two()).prepare
    batch = jax.jit(prepare)({"image": images, "other": images}, jax.random.key(0))
    flipped = [np.asarray(batch[k])[:, 0, 0, 0] > 0 for k in ("image", "other")]
    assert all(20 < f.sum() < 44 for f in flipped)
    assert 16 < (flipped[0] != flipped[1]).sum() < 48  # not one coin for both
    plain = augment.to_float(images[:1])
    for name, of in zip(("image", "other"), flipped, strict=True):
        np.testing.assert_allclose(batch[name][~of], np.repeat(plain, (~of).sum(), 0), atol=1e-6)
        back = batch[name][of][:, :, ::-1]
        np.testing.assert_allclose(back, np.repeat(plain, of.sum(), 0), atol=1e-6)


def test_jitter_is_a_window_of_the_enlarged_image():
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3), minval=-1.0)
    found = np.asarray(augment.augment(jax.random.key(1), x, jitter=4))
    large = np.clip(jax.image.resize(x, (6, 12, 12, 3), "cubic", antialias=False), -1, 1)
    places = []
    for image, whole in zip(found, large, strict=True):
        fits = [
            (i, j)
            for i, j in itertools.product(range(5), repeat=2)
            if np.allclose(image, whole[i : i + 8, j : j + 8], atol=1e-6)
        ]
        assert len(fits) == 1
        places += fits
    assert len(set(places)) > 2
    np.testing.assert_array_equal(augment.augment(jax.random.key(1), x, jitter=0), x)


def test_examples_are_floats_in_both_domains():
    config = cyclegan_maps.get_config("smoke").unlock()
    config.data.test_split = "pair"
    source = Pairs(numbered(0, 10), numbered(100, 10))
    spec = datasets.DataSpec((2, 2, 3), 0, {"pair": 10})
    mesh = sharding.make_mesh()
    batch = next(judging.examples(config, datasets.Dataset(spec, {"pair": source}), mesh))
    for name, first in (("image", 0), ("other", 100)):
        assert batch[name].dtype == jnp.float32
        expected = (first + np.arange(8)) / 127.5 - 1
        np.testing.assert_allclose(batch[name][:, 1, 1, 2], expected, rtol=1e-6)


# Opening


def write(folder, colours, mode="RGB", size=(12, 10)):
    folder.mkdir(parents=True)
    for i, colour in enumerate(colours):
        Image.new(mode, size, colour).save(folder / f"{i}.png")


@pytest.fixture
def domains(tmp_path):
    """A folder of two domains, one of them grey, beside a picture that belongs to neither."""
    write(tmp_path / "trainA", [(10 * i, 0, 0) for i in range(5)])
    write(tmp_path / "trainB", [10 * i for i in range(3)], "L")
    write(tmp_path / "testA" / "deep", [(200, 0, 0)])
    write(tmp_path / "testB", [(0, 0, 200)] * 2)
    Image.new("RGB", (4, 4)).save(tmp_path / "notes.png")
    return str(tmp_path)


def open_folder(path, *splits, **options):
    return datasets.load("folder", path=path, image_size=8, splits=splits, **options)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_of_domains_opens_as_two_splits(domains, in_memory):
    found = open_folder(domains, "trainA+trainB", "testA+testB", in_memory=in_memory)
    assert found.spec == ((8, 8, 3), 0, {"trainA+trainB": 5, "testA+testB": 2})
    batch = found.sources["trainA+trainB"].fetch(np.arange(5))
    assert batch["image"].shape == batch["other"].shape == (5, 8, 8, 3)
    assert batch["image"].dtype == batch["other"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][:, 4, 4], [(10 * i, 0, 0) for i in range(5)])
    assert batch["other"][:, 4, 4, 1].tolist() == [0, 10, 20, 0, 10]
    test = found.sources["testA+testB"].fetch(np.arange(2))
    assert test["image"][:, 0, 0].tolist() == [[200, 0, 0]] * 2
    whole = datasets.load("folder", path=domains, image_size=8)  # each by itself, without labels
    assert whole.spec == ((8, 8, 3), 0, {"trainA": 5, "trainB": 3, "testA": 1, "testB": 2})
    assert whole.sources["trainB"].fetch(np.arange(3)).keys() == {"image"}


def test_domains_of_tfds_open_as_one_split(shared_tfds):
    found = datasets.load(
        "cycle_gan/maps", data_dir=shared_tfds, image_size=16, splits=("testA+testB", "testB")
    )
    assert found.spec == ((16, 16, 3), 0, {"testA+testB": 200, "testB": 200})
    batch = found.sources["testA+testB"].fetch(np.array([3, 199]))
    expected = found.sources["testB"].fetch(np.array([3, 199]))["image"]
    np.testing.assert_array_equal(batch["other"], expected)
    assert batch["image"].mean() < 150 < 200 < batch["other"].mean()  # photographs beside maps


def test_what_is_no_pair_of_domains_is_told(domains, tmp_path):
    with pytest.raises(DataError, match=r"has no split 'trainC': it has trainA, trainB, testA, te"):
        open_folder(domains, "trainA+trainC")
    for split in ("trainA+", "+trainB", "a+b+c"):
        with pytest.raises(DataError, match="one name, or two such as trainA\\+trainB"):
            open_folder(domains, split)
    assert parts("train") == ("train",)
    (tmp_path / "empty" / "trainA").mkdir(parents=True)
    (tmp_path / "empty" / "trainB").mkdir()
    with pytest.raises(DataError, match="no images in"):
        open_folder(str(tmp_path / "empty"), "trainA+trainB")
    write(tmp_path / "half" / "trainA", [(0, 0, 0)])
    (tmp_path / "half" / "trainB").mkdir()
    with pytest.raises(DataError, match=r"has no split 'trainB': it has trainA"):
        open_folder(str(tmp_path / "half"), "trainA+trainB")


def test_domains_of_two_shapes_are_told():
    for other, shape in ((numbered(0, 2, channels=1), "2x2x1"), (numbered(0, 2, side=4), "4x4x3")):
        with pytest.raises(DataError, match=f"of one shape, not of 2x2x3 and {shape}"):
            Pairs(numbered(0, 2), other)


@pytest.mark.parametrize("sizes", [(3, 12), (12, 3)])
def test_a_domain_smaller_than_a_batch_is_told(sizes):
    with pytest.raises(DataError, match=r"a batch of 4 is larger than the data set's 3 images"):
        loader.batches(pairs(*sizes), batch_size=4, seed=0)
