"""Ablations from their config to tables and pages, and what is refused before any training."""

import csv
import json
import re
import shutil

import pytest

from aigc_jax.commands import ablate, boundary, report, train
from aigc_jax.commands.variants import cells, picked, varied
from aigc_jax.errors import MissingError, SettingError
from configs import gan_mixture
from configs.ablations import gan_mixture as shipped
from configs.bases.ablation import ablation

MODES, KL = "mixture_modes", "reverse_kl_all"
R1 = {"gan.penalty.name": "r1"}


def small(**changes):
    """A base of seconds, evaluated on its schedule and at its end."""
    base = gan_mixture.get_config("smoke")
    with base.unlocked():
        base.log.update({"sample_every": 4, "samples": 4, "eval_every": 2})
        base.evaluation.update({"at_end": True, "scheduled_count": 32})
    base.update_from_flattened_dict(changes)
    return base


def ablation_of(variants=None, base=None, **settings):
    return ablation(base or small(), variants, **{"metrics": (MODES, KL), "seeds": 2} | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two variants, one of which shares the base's program, with two seeds; trained, and where."""
    folder = tmp_path_factory.mktemp("ablation")
    config = ablation_of({"slow": {"optimizer.learning_rate": 1e-5}, "r1": R1})
    assert ablate.run(config, folder, replicas="vmap", only=["base", "slow"]) == 0
    return config, folder


def test_tables_say_what_the_runs_measured(trained):
    _, folder = trained
    results = json.loads((folder / "results.json").read_text())
    values = {}
    for seed in (0, 1):
        for variant in ("base", "slow"):
            place = folder / "runs" / variant / f"seed_{seed}" / "evaluations"
            (path,) = place.glob("step00000004-*.json")
            rows = {row["metric"]: row["value"] for row in json.loads(path.read_text())["rows"]}
            values[variant, seed] = rows[KL]
    for run in results["runs"]:
        assert run["values"][KL] == values[run["variant"], run["seed"]]
        assert run["seconds"] > 0
    (row,) = [r for r in results["rows"] if (r["metric"], r["variant"]) == (KL, "slow")]
    assert row["mean"] == pytest.approx((values["slow", 0] + values["slow", 1]) / 2)
    told = [values["slow", s] - values["base", s] for s in (0, 1)]
    assert row["difference"] == pytest.approx(sum(told) / 2)
    assert (results["reference"], results["comparisons"]) == ("base", 2)
    with (folder / "table.csv").open() as file:
        (same,) = [r for r in csv.DictReader(file) if (r["metric"], r["variant"]) == (KL, "slow")]
    assert float(same["mean"]) == row["mean"]
    text = (folder / "table.md").read_text()
    assert re.search(rf"^\| variant \| n \| {MODES} \| difference of {MODES} \|", text)
    assert "| r1 | 0 | — |" in text
    assert "2 comparisons were made" in text
    assert "4 of 6 runs are finished." in text


def test_the_page_holds_bars_curves_and_samples(trained):
    _, folder = trained
    page = (folder / "report.html").read_text()
    titles = [MODES, KL, f"eval/{KL}, by images", f"eval/{KL}, by seconds"]
    for title in [*titles, f"{MODES} by seconds of training"]:
        assert f"<figcaption><b>{title}</b>" in page
    assert page.count("data:image/png;base64") == 2  # seed 0 of both variants
    assert "optimizer.learning_rate" in page


def test_what_is_finished_is_not_trained_again(trained, capsys, monkeypatch):
    config, folder = trained
    monkeypatch.setattr(ablate, "trained", None)
    assert ablate.run(config, folder, only=["base", "slow"]) == 0
    assert "[1/" not in capsys.readouterr().out
    assert ablate.run(config, folder, only=["base", "slow/seed_1"], dry=True) == 0
    assert "0 of 3 runs are left" in capsys.readouterr().out


def test_a_dry_run_times_steps_and_writes_nothing(tmp_path, capsys):
    ablate.run(ablation_of(), tmp_path / "new", dry=True)
    out = capsys.readouterr().out
    assert re.search(r"base/seed_0: 4 steps, about .* ms a step\)", out)
    assert "--shard=0/2 to --shard=1/2" in out
    assert not (tmp_path / "new").exists()


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    done = []

    def trained(part, origin, writers):
        (cell,) = part
        if cell.name == "base/seed_1":
            raise SettingError("no such weights")
        done.append(cell.name)
        return cell.steps, {}

    monkeypatch.setattr(ablate, "trained", trained)
    assert ablate.run(ablation_of({"r1": R1}), tmp_path) == 1
    assert done == ["base/seed_0", "r1/seed_0", "r1/seed_1"]
    assert "base/seed_1 failed: no such weights" in capsys.readouterr().out
    assert "base/seed_1 failed: no such weights" in (tmp_path / "table.md").read_text()


def test_one_that_is_stopped_ends_all(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "trained", lambda part, origin, writers: (part[0].steps - 1, {}))
    assert ablate.run(ablation_of(), tmp_path) == boundary.STOPPED


def test_shards_share_the_runs():
    found = cells(ablation_of({"r1": R1}, seeds=5), "x")
    parts = [picked(found, None, f"{i}/3") for i in range(3)]
    assert sorted(map(len, parts)) == [3, 3, 4]
    assert sorted(cell.name for part in parts for cell in part) == sorted(c.name for c in found)


def test_a_grid_has_the_base_first_and_every_combination():
    found = cells(shipped.get_config("smoke"), "x")
    names = list(dict.fromkeys(cell.variant for cell in found))
    assert len(names) == 18
    assert names[0] == "loss=relativistic+penalty=r1_r2"
    (one,) = [c for c in found if c.name == "loss=hinge+penalty=none/seed_3"]
    assert (one.config.gan.loss, one.config.gan.penalty.name) == ("hinge", "none")
    assert one.config.seed == 3


def test_settings_that_follow_others_follow_a_variant_too():
    found = varied(small(), "long", [("train.steps", 8)])
    assert found.optimizer.decay_steps == 8
    network = {"name": "mlp", "latent": 2, "hidden": (4,), "activation": "relu", "output": "linear"}
    other = varied(small(), "whole", [("network.generator", network)])
    assert other.network.generator.hidden == (4,)


BAD = {
    "key": (ablation_of({"a": {"gan.penalty.wieght": 1.0}}), "'a' sets .* did you mean .*weight"),
    "kind": (ablation_of({"a": {"train.steps": "many"}}), "'a', train.steps: "),
    "value": (ablation_of({"a": {"train.steps": -1}}), "'a': config.train.steps is"),
    "same": (ablation_of({"a": R1, "b": R1}), "'a' and 'b' are the same config"),
    "folder": (ablation_of({"a/b": R1}), "'a/b' names a folder"),
    "seed": (ablation_of({"a": {"seed": 3}}), "config.seeds says"),
    "twice": (ablation_of(seeds=(1, 2, 1)), "names one twice"),
    "many": (ablation_of({"a": R1}, most_runs=3), "2 seeds are 4 runs, and config.most_runs is 3"),
    "metric": (ablation_of(metrics=("fid",)), "names 'fid', which these runs do not have"),
    "schedule": (
        ablation_of(metrics=(f"eval/{MODES}",), base=small(**{"evaluation.scheduled_count": 0})),
        f"names 'eval/{MODES}', which these runs do not have: did you mean '{MODES}'",
    ),
    "none": (ablation_of(metrics=()), "config.metrics names none"),
    "no end": (
        ablation_of(base=small(**{"evaluation.at_end": False})),
        r"'mixture_modes'.*at_end is False",
    ),
    "run": (small(), "--mode=ablate takes the config of an ablation"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_before_anything_is_written(case, tmp_path):
    config, words = BAD[case]
    with pytest.raises(SettingError, match=words):
        ablate.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"only": ["bsae"]}, "did you mean 'base'"),
        ({"only": ["base/seed_7"]}, "base/seed_0"),
        ({"shard": "2/2"}, "i from 0 to n - 1"),
        ({"shard": "1"}, "such as 0/4"),
    ],
)
def test_flags_that_name_no_run(flags, words, tmp_path):
    with pytest.raises(SettingError, match=words):
        ablate.run(ablation_of(), tmp_path / "new", **flags)


def test_a_run_whose_rows_are_lost_is_named(trained, tmp_path):
    config, folder = trained
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "runs" / "base" / "seed_0" / "metrics.jsonl").write_text("")
    with pytest.raises(SettingError, match=r"base/seed_0/metrics\.jsonl lacks the run's last rows"):
        ablate.run(config, copy)


def test_a_folder_is_of_a_run_or_of_an_ablation(trained):
    config, folder = trained
    with pytest.raises(SettingError, match="holds an ordinary run"):
        ablate.run(config, folder / "runs" / "base" / "seed_0")
    with pytest.raises(SettingError, match="holds an ablation"):
        train.run(small(), folder)


def test_other_commands_name_the_runs_of_an_ablation(trained):
    _, folder = trained
    with pytest.raises(MissingError, match=r"name one of its 4 runs, such as .*base/seed_0"):
        report.run(folder)


def test_a_run_that_diverges_is_told_beside_those_that_go_on(tmp_path):
    base = small(**{"train.max_skipped": 2, "train.steps": 8})
    hot = {"hot": {"optimizer.learning_rate": 1e30}}
    config = ablation_of(hot, base=base, seeds=1, metrics=(MODES,))
    assert ablate.run(config, tmp_path, replicas="vmap") == 1
    failed = json.loads((tmp_path / "results.json").read_text())["failed"]
    assert failed.keys() == {"hot/seed_0"}
    assert failed["hot/seed_0"].endswith("Other settings are another variant")
    assert "1 of 2 runs are finished." in (tmp_path / "table.md").read_text()


def test_runs_of_another_config_are_not_compared(trained):
    _, folder = trained
    other = ablation_of({"r1": R1}, base=small(**{"gan.penalty.weight": 0.3}))
    with pytest.raises(SettingError, match=r"(?s)seed_0 .*another config.*weight"):
        ablate.run(other, folder)
