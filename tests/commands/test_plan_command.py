"""Planning by command: on CPU devices, with a TPU's compiler where it is, and what is refused."""

import importlib.util
import json

import pytest

from aigc_jax.commands import plan
from aigc_jax.planning import topology
from aigc_jax.planning.cost import Cost, Memory
from aigc_jax.planning.peaks import CHIPS

SMOKE = "--config=configs/ddpm_digits.py:smoke"
REFUSED = [
    (["--topology="], "name the devices: --topology is one of v4:2x2x2"),
    (["--topology=v5e:4x5"], "v5e has no such slice; near it are v5e:4x4, v5e:4x8"),
    (["--topology=cpu:16"], "here are 8 cpu devices, not 16"),
    (["--topology=cpu:8", "--config.train.batch_size=12"], "12 does not divide over 8 devices"),
    (["--topology=cpu:8", "--config.train.microbatches=4"], "over 8 devices in 4 parts each"),
    (["--topology=cpu:2", "--image-shape=a,b"], "--image-shape is such as 64,64,3, not a,b"),
    (["--topology=cpu:2", "--image-shape=8,8"], "--image-shape is height, width, channels"),
    (["--topology=cpu:2", "--config.data.name=digit"], "unknown data set 'digit': did you mean"),
    (["--topology=cpu:2", "--config.data.name=folder"], "give --image-shape=64,64,3"),
    (["--topology=cpu:2", "--config.train.steps=0"], "config.train.steps"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_cannot_be_planned_is_refused_in_a_line(launch, tmp_path, given, told):
    with pytest.raises(SystemExit) as caught:
        launch("--mode=plan", SMOKE, f"--workdir={tmp_path / 'run'}", *given)
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_libtpu_a_line_says_what_to_install(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(SystemExit, match=r"pip install .libtpu"):
        launch("--mode=plan", SMOKE, f"--workdir={tmp_path}", "--topology=v5e:4x4")


def test_a_plan_of_devices_with_known_peaks(launch, tmp_path, capsys, monkeypatch):
    """As on two chips of v5e, compiled by the CPU's compiler."""
    monkeypatch.setattr(topology, "chip_of", lambda devices: CHIPS["v5e"])
    launch("--mode=plan", "--config=configs/vae_digits.py:smoke", f"--workdir={tmp_path}",
           "--topology=cpu:2,cpu:1", "--per-chip=4", "--price=2")  # fmt: skip
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())["plans"]
    two, one = found
    assert [made["batch"] for made in found] == [8, 4]
    step = two["train"]
    # Half of the same work each, and gradients (with the loss and metrics) are reduced whole.
    assert step["flops"] == one["train"]["flops"]
    assert one["train"]["collectives"] == []
    (reduced,) = step["collectives"]
    parameters = sum(two["parameters"].values())
    assert reduced["kind"] == "all-reduce"
    assert 4 * parameters <= reduced["size"] <= 4 * parameters + 400
    links = topology.link_bandwidth(CHIPS["v5e"], (2,))
    assert step["link_seconds"] == pytest.approx(reduced["size"] / links)
    longer = max(step["arithmetic_seconds"], step["memory_seconds"])
    assert step["seconds"] == longer + step["link_seconds"]
    assert step["images_per_second"] == pytest.approx(8 / step["seconds"])
    assert step["utilisation"] == pytest.approx(step["flops"] / 197e12 / step["seconds"])
    assert step["hours"] == pytest.approx(step["seconds"] * step["steps"] / 3600)
    assert step["price"] == pytest.approx(2 * 2 * step["hours"])
    assert step["fits"]
    assert two["sample"]["count"] == 64
    assert two["sample"]["flops"] > 0
    assert "bound by" in told
    assert "longer by" in told


def test_a_plan_of_devices_without_peaks_says_so_and_predicts_nothing(launch, tmp_path, capsys):
    launch("--mode=plan", "--config=configs/gan_mixture.py:smoke", f"--workdir={tmp_path}",
           "--topology=cpu:1")  # fmt: skip
    assert "no published peaks are known of cpu" in capsys.readouterr().out
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert "seconds" not in made["train"]
    assert made["train"]["memory"]["arguments"] > 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_plan_for_a_tpu(command, tmp_path):
    done = command("--mode=plan", "--config=configs/gan_digits.py:smoke", f"--workdir={tmp_path}",
                   "--topology=v5e:2x2", "--per-chip=8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert (made["chips"], made["devices"], made["unit"]) == (4, 4, "chip")
    kinds = {one["kind"] for one in made["train"]["collectives"]}
    assert "all-reduce" in kinds
    assert 0 < made["train"]["utilisation"] < 1
    assert made["sample"]["seconds"] > 0


def test_the_largest_batch_is_the_last_whose_step_fits(monkeypatch):
    """A step that holds 2^28 bytes and 2^20 an example, on two chips of 16 GiB: 16,128 examples."""
    asked = []

    def compiled(batch_size, where):
        asked.append(batch_size)
        if batch_size > 20_000:
            return None, "does not fit: RESOURCE_EXHAUSTED"
        memory = Memory(2**28, 0, 2**20 * batch_size, 0)
        return Cost(1.0, 1.0, 1.0, memory), ""

    class Mesh:
        size = 2

    monkeypatch.setattr(plan, "training", lambda config, *others: config["train"]["batch_size"])
    monkeypatch.setattr(plan, "compiled", compiled)
    where = plan.Place(topology.parse("cpu:2"), Mesh(), CHIPS["v5e"])
    config = {"train": {"batch_size": 64, "microbatches": 1}}
    found = plan.largest_batch(config, None, None, where)
    assert 16_128 * 15 / 16 <= found <= 16_128
    assert len(asked) < 16
    assert plan.largest_batch(config, None, None, where._replace(chip=None)) is None


def test_chips_of_two_cores_share_their_peaks():
    class Mesh:
        size = 8

    asked = topology.parse("tpu7x:2x2x1")
    where = plan.Place(asked, Mesh(), CHIPS["tpu7x"])
    assert (where.chips, where.share, where.word) == (4, 0.5, "core")
    assert where.peaks.flops == CHIPS["tpu7x"].flops / 2
    assert where.limit == CHIPS["tpu7x"].memory / 2
