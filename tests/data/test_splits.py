"""Parts of splits by name: which examples they are, and which two share."""

import itertools

import pytest
import tensorflow_datasets as tfds

from aigc_jax.commands import common
from aigc_jax.data import splits
from aigc_jax.data.images import DataError


@pytest.mark.parametrize("size", [39, 1000])
def test_slices_are_those_of_tfds(size):
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[size], num_bytes=0, filename_template=None
    )
    bounds = ["", "3", "-7", "1_0", "5%", "-12%", "33.3%", "90%"]
    for a, b in itertools.product(bounds, bounds):
        units = {x[-1] == "%" for x in (a, b) if x}
        if len(units) != 1:  # nothing, or a mixture
            continue
        split = f"train[{a}:{b}]"
        (found,) = tfds.core.ReadInstruction.from_spec(split).to_absolute({"train": info})
        want = (found.from_ or 0, size if found.to is None else found.to)
        if want[0] < want[1]:
            assert splits.choose("x", {"train": size}, [split])[split] == ("train", *want)
        else:
            with pytest.raises(DataError, match="cannot be taken"):
                splits.choose("x", {"train": size}, [split])


def test_parts_that_share_examples():
    part = lambda *names: splits.choose("x", {"a": 100, "b": 50}, names).values()  # noqa: E731
    assert splits.overlap(part("a[:50]"), part("a[50:]")) == 0
    assert splits.overlap(part("a[:60]"), part("a[50:]")) == 10
    assert splits.overlap(part("a"), part("a[-5%:]")) == 5
    assert splits.overlap(part("a"), part("b")) == 0
    assert splits.overlap(part("a[:9]", "b"), part("a[9:]", "b[:1]")) == 1  # two domains


def test_splits_that_share_examples_are_said(capsys, monkeypatch):
    def said(train, test):
        data = {"name": "ring", "train_split": train, "test_split": test}
        opened = common.open_data({"data": data, "train": {"batch_size": 8}})
        assert (opened.train_split, opened.test_split) == (train, test)
        return capsys.readouterr().out

    assert said("train[:100]", "train[100:]") == ""
    assert said("train", "train") == ""  # on purpose
    assert "train_split=train[:100] and data.test_split=train[90:] share 10 exam" in said(
        "train[:100]", "train[90:]"
    )
    told = said("test", "test[:25%]")
    assert told.startswith("warning: ")
    assert "share 2,500 examples" in told
    assert told.count("\n") == 1
    monkeypatch.setattr(common.jax, "process_index", lambda: 1)
    assert said("test", "test[:25%]") == ""
