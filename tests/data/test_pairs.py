"""Two domains as one split: what meets what, as a function of (seed, step); folders of domains."""

import collections
import itertools

import numpy as np
import pytest
import specs
from PIL import Image

from aigc_jax.data import datasets, loader
from aigc_jax.data.images import DataError
from aigc_jax.data.pairs import Pairs, parts
from aigc_jax.data.sources import ArraySource


def numbered(first, count, side=2, channels=3):
    """Images that say their own number, from `first` on, in every pixel; labels to be dropped."""
    number = np.arange(first, first + count, dtype=np.uint8)
    pixels = np.broadcast_to(number[:, None, None, None], (count, side, side, channels))
    return ArraySource(np.ascontiguousarray(pixels), number.astype(np.int32))


def pairs(a=12, b=12):
    return Pairs(numbered(0, a), numbered(100, b))


def take(source, count, **options):
    """Numbers [count, 2, batch] of A and B in the first batches."""
    options = {"batch_size": 4, "seed": 0} | options
    iterator = loader.batches(source, **options)
    found = []
    for batch in itertools.islice(iterator, count):
        assert batch.keys() == {"x", "other"}
        found.append([batch[k][..., 0, 0, 0].reshape(-1) for k in ("x", "other")])
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
        for k in ("x", "other")
    )
    np.testing.assert_array_equal(a, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(b, [100, 101, 102, 100, 101])


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
    assert found.spec == specs.images(
        (8, 8, 3), 0, {"trainA+trainB": 5, "testA+testB": 2}, domains=2
    )
    batch = found.sources["trainA+trainB"].fetch(np.arange(5))
    assert batch["x"].shape == batch["other"].shape == (5, 8, 8, 3)
    assert batch["x"].dtype == batch["other"].dtype == np.uint8
    np.testing.assert_array_equal(batch["x"][:, 4, 4], [(10 * i, 0, 0) for i in range(5)])
    assert batch["other"][:, 4, 4, 1].tolist() == [0, 10, 20, 0, 10]
    test = found.sources["testA+testB"].fetch(np.arange(2))
    assert test["x"][:, 0, 0].tolist() == [[200, 0, 0]] * 2
    whole = datasets.load("folder", path=domains, image_size=8)  # each by itself, without labels
    assert whole.spec == specs.images(
        (8, 8, 3), 0, {"trainA": 5, "trainB": 3, "testA": 1, "testB": 2}
    )
    assert whole.sources["trainB"].fetch(np.arange(3)).keys() == {"x"}


def test_domains_of_tfds_open_as_one_split(shared_tfds):
    found = datasets.load(
        "cycle_gan/maps", data_dir=shared_tfds, image_size=16, splits=("testA+testB", "testB")
    )
    assert found.spec == specs.images((16, 16, 3), 0, {"testA+testB": 200, "testB": 200}, domains=2)
    batch = found.sources["testA+testB"].fetch(np.array([3, 199]))
    expected = found.sources["testB"].fetch(np.array([3, 199]))["x"]
    np.testing.assert_array_equal(batch["other"], expected)
    assert batch["x"].mean() < 150 < 200 < batch["other"].mean()  # photographs beside maps


def test_what_is_no_pair_of_domains_is_refused(domains, tmp_path):
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


def test_a_seed_for_the_order_of_each_domain_comes_from_the_streams(monkeypatch):
    plain = take(pairs(), 6)
    own = loader.streams.order(0, 0)
    monkeypatch.setattr(loader.streams, "order", lambda seed, domain: 7 if domain else own)
    other = take(pairs(), 6)
    np.testing.assert_array_equal(other[:, 0], plain[:, 0])
    assert (other[:, 1] != plain[:, 1]).any()


def test_domains_of_two_shapes_are_refused():
    for other, shape in ((numbered(0, 2, channels=1), "2x2x1"), (numbered(0, 2, side=4), "4x4x3")):
        with pytest.raises(DataError, match=f"of one shape, not of 2x2x3 and {shape}"):
            Pairs(numbered(0, 2), other)


@pytest.mark.parametrize("sizes", [(3, 12), (12, 3)])
def test_a_domain_smaller_than_a_batch_is_refused(sizes):
    with pytest.raises(DataError, match=r"a batch of 4 is larger than the data set's 3 examples"):
        loader.batches(pairs(*sizes), batch_size=4, seed=0)
