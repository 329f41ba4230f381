"""The loader: a batch is a function of (seed, step), however it is reached and shared."""

import gc
import threading
import time

import numpy as np
import pytest

from aigc_jax.data.images import DataError
from aigc_jax.data.loader import batches, epoch
from aigc_jax.data.sources import ArraySource

SIZE = 50


@pytest.fixture
def source() -> ArraySource:
    """Fifty 2x2 images, each of which says its position in every pixel and in its label."""
    position = np.arange(SIZE)
    images = np.broadcast_to(position[:, None, None, None], (SIZE, 2, 2, 3)).astype(np.uint8)
    return ArraySource(images, position.astype(np.int32))


def take(iterator, count):
    result = [next(iterator)["label"] for _ in range(count)]
    iterator.close()
    return np.stack(result)


def test_a_batch_is_a_function_of_seed_and_step(source):
    first = take(batches(source, batch_size=8, seed=3), 20)
    again = take(batches(source, batch_size=8, seed=3, num_threads=1, prefetch=1), 20)
    np.testing.assert_array_equal(first, again)
    assert (take(batches(source, batch_size=8, seed=4), 20) != first).any()


@pytest.mark.parametrize("start", [1, 7, 200])
def test_starting_at_a_step_equals_skipping_to_it(source, start):
    whole = take(batches(source, batch_size=8, seed=0, batches_per_step=2), start + 2)
    resumed = take(batches(source, batch_size=8, seed=0, batches_per_step=2, start=start), 2)
    np.testing.assert_array_equal(whole[start:], resumed)


def test_images_and_labels_belong_together(source):
    batch = next(batches(source, batch_size=8, seed=0, batches_per_step=3))
    assert batch["x"].shape == (3, 8, 2, 2, 3)
    assert batch["x"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["x"][..., 1, 1, 2], batch["label"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_side_by_side_hold_what_one_would(source, processes):
    options = {"batch_size": 8, "seed": 5, "batches_per_step": 2, "start": 3}
    whole = take(batches(source, **options), 4)
    shares = [
        take(batches(source, **options, process_index=i, process_count=processes), 4)
        for i in range(processes)
    ]
    assert shares[0].shape == (4, 2, 8 // processes)
    np.testing.assert_array_equal(np.concatenate(shares, axis=2), whole)


def test_the_batches_of_a_step_are_the_ones_that_would_have_come_one_by_one(source):
    single = take(batches(source, batch_size=8, seed=2), 12)
    three = take(batches(source, batch_size=8, seed=2, batches_per_step=3), 4)
    np.testing.assert_array_equal(three.reshape(12, 1, 8), single)


def test_each_epoch_covers_every_example_once_in_an_order_of_its_own(source):
    # 8 does not divide 50: an epoch ends inside a batch, and nothing is dropped there.
    stream = take(batches(source, batch_size=8, seed=1), 4 * SIZE // 8).reshape(-1)
    epochs = stream.reshape(-1, SIZE)
    assert len(epochs) == 4
    for order in epochs:
        np.testing.assert_array_equal(np.sort(order), np.arange(SIZE))
    assert len({tuple(order) for order in [*epochs, np.arange(SIZE)]}) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_pass_is_in_order_and_masks_its_padding(source, processes):
    shares = [
        list(epoch(source, batch_size=16, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    label, mask = (
        np.concatenate([np.stack([b[key] for b in share]) for share in shares], axis=1).reshape(-1)
        for key in ("label", "mask")
    )
    np.testing.assert_array_equal(label[mask == 1], np.arange(SIZE))
    np.testing.assert_array_equal(label[mask == 0], SIZE - 1)
    assert mask.shape == (64,)
    assert mask.dtype == np.float32


def test_impossible_batches_say_what_to_do(source):
    with pytest.raises(DataError, match=r"larger than .* 50 examples: set train.batch_size"):
        batches(source, batch_size=51, seed=0)
    for make in (lambda **k: batches(source, seed=0, **k), lambda **k: epoch(source, **k)):
        with pytest.raises(DataError, match=r"by 4 processes: set train.batch_size to 8 or 12"):
            make(batch_size=10, process_count=4)


def grain_threads():
    gc.collect()
    return {t for t in threading.enumerate() if "grain" in t.name}


@pytest.mark.parametrize("end", ["close", "forget"])
def test_threads_end_with_the_iterator(source, end, request):
    gc.freeze()  # what other tests left behind takes seconds to look through, each time
    request.addfinalizer(gc.unfreeze)
    before = grain_threads()
    iterator = batches(source, batch_size=8, seed=0)
    next(iterator)
    assert grain_threads() - before
    if end == "close":
        iterator.close()
    del iterator
    deadline = time.monotonic() + 5
    while grain_threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not grain_threads() - before


def test_an_error_in_a_thread_reaches_the_caller(source):
    class Broken(ArraySource):
        def fetch(self, indices):
            raise DataError("corrupt image a.png")

    with pytest.raises(DataError, match=r"corrupt image a\.png"):
        next(batches(Broken(source.x, source.labels), batch_size=8, seed=0))
