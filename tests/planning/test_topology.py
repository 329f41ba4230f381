"""Names of slices, the table of peaks, and what is refused."""

import importlib.util
import math

import jax
import pytest

from aigc_jax.errors import MissingError, SettingError
from aigc_jax.planning import peaks, topology


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e:4x4", "v5e", (4, 4)),
        ("v6e:16x16", "v6e", (16, 16)),
        ("v4:2x2x1", "v4", (2, 2, 1)),
        ("v5p:4x4x8", "v5p", (4, 4, 8)),
        ("tpu7x:4x4x4", "tpu7x", (4, 4, 4)),
        ("cpu", "cpu", (0,)),
        ("gpu:8", "gpu", (8,)),
    ],
)
def test_a_slice_is_read_from_its_name(name, kind, shape):
    found = topology.parse(name)
    assert (found.kind, found.shape, found.chips) == (kind, shape, math.prod(shape))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5e:4x5", "v5e:4x4, v5e:4x8"),
        ("v5e", "near it are v5e:2x2"),
        ("v5e:4x", "near it are v5e:2x2"),
        ("v5p:2x2", "v5p:2x2x1"),
        ("v4:4x4x5", "v4:4x4x4"),
        ("v5:4x4", "did you mean v5"),
        ("tpu:4x4", "did you mean .*gpu|did you mean .*tpu7x"),
        ("zzz", "give one such as"),
        ("cpu:0", "give cpu, or cpu:4"),
    ],
)
def test_a_slice_that_is_not_there_names_those_near_it(name, told):
    with pytest.raises(SettingError, match=told):
        topology.parse(name)


def test_every_slice_that_is_named_is_read_again():
    for kind in topology.TPUS:
        for shape in topology.slices(kind):
            assert topology.parse(f"{kind}:{'x'.join(map(str, shape))}").shape == shape


def test_more_devices_than_there_are_is_an_error_that_says_how_many():
    with pytest.raises(SettingError, match="here are 8 cpu devices, not 16; set JAX_NUM_CPU"):
        topology.devices(topology.parse("cpu:16"))
    assert len(topology.devices(topology.parse("cpu:2"))) == 2
    assert len(topology.devices(topology.parse("cpu"))) == len(jax.devices())


def test_without_a_gpu_there_is_nothing_to_compile_for():
    with pytest.raises(MissingError, match="jax finds no gpu on this machine"):
        topology.devices(topology.parse("gpu"))


def test_without_its_compiler_a_tpu_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(MissingError, match=r'pip install "libtpu==\d'):
        topology.devices(topology.parse("v5e:4x4"))


def test_the_table_of_peaks_names_a_source_and_believable_numbers():
    assert set(topology.TPUS) <= set(peaks.CHIPS)
    for chip in peaks.CHIPS.values():
        assert chip.source.startswith("https://")
        assert 1e14 < chip.flops < 1e16
        assert 1e10 < chip.memory < 1e12
        assert 100 < chip.flops / chip.bandwidth < 600  # FLOPs a byte
        assert chip.link < chip.bandwidth


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_a_device_is_known_by_what_jax_calls_it(kind, name):
    assert peaks.of_kind(kind) is peaks.CHIPS[name]


def test_of_other_devices_no_peaks_are_known():
    assert peaks.of_kind("cpu") is None
    assert peaks.of_kind("NVIDIA H100 NVL") is None


def test_links_add_up_over_axes_and_double_where_an_axis_closes():
    plane, space = peaks.CHIPS["v5e"], peaks.CHIPS["v5p"]
    ways = {(1, 1): 0, (2, 2): 2, (4, 4): 2, (8, 16): 3, (16, 16): 4}
    for shape, count in ways.items():
        assert topology.link_bandwidth(plane, shape) == count * plane.link
    ways = {(2, 2, 1): 2, (2, 4, 4): 3, (4, 4, 4): 6}
    for shape, count in ways.items():
        assert topology.link_bandwidth(space, shape) == count * space.link
    switched = peaks.CHIPS["h200"]
    assert topology.link_bandwidth(switched, (8,)) == switched.link
