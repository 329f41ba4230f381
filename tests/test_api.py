"""Python use: configs, training by rows, samples, codes and scores as arrays."""

import json
import re

import numpy as np
import pytest

import aigc_jax
from aigc_jax import api
from aigc_jax.errors import SettingError

SMALL = {"log.every": 1, "log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "vae"
    return aigc_jax.train(aigc_jax.config("vae_digits:smoke", SMALL), folder)


def test_a_config_by_name_by_path_and_with_settings(tmp_path):
    config = aigc_jax.config("vae_digits:smoke+beta4", {"train.steps": 7})
    assert (config.vae.kl.beta, config.train.steps) == (4.0, 7)
    own = tmp_path / "own.py"
    own.write_text("from configs.vae_digits import get_config\n")
    assert aigc_jax.config(f"{own}:beta4").vae.kl.beta == 4.0
    with pytest.raises(SettingError, match="did you mean 'vae_digits'"):
        aigc_jax.config("vae_digit")
    with pytest.raises(LookupError, match="unknown variant 'beta5': did you mean beta4"):
        aigc_jax.config("vae_digits:beta5")
    with pytest.raises(SettingError, match=r"did you mean 'train\.steps'"):
        aigc_jax.config("vae_digits", {"train.stepz": 7})
    with pytest.raises(SettingError, match=r"config\.train\.steps: "):
        aigc_jax.config("vae_digits", {"train.steps": "many"})
    own.write_text("x = 1\n")
    with pytest.raises(SettingError, match="no config"):
        aigc_jax.config(own)


def test_rows_come_one_by_one_and_a_loop_that_is_left_saves(tmp_path):
    config = aigc_jax.config(
        "gan_mixture:smoke", SMALL | {"train.steps": 40, "checkpoint.every": 0}
    )
    for step, metrics in aigc_jax.rows(config, tmp_path / "run"):
        assert np.isfinite(metrics["generator/loss"])
        if step == 3:
            break
    stopped = aigc_jax.load(tmp_path / "run").model.step
    assert stopped == 3
    steps = [step for step, _ in aigc_jax.rows(config, tmp_path / "run")]
    assert steps == list(range(stopped + 1, 41))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))


def test_an_error_of_training_is_raised_where_rows_are_asked_for(tmp_path):
    config = aigc_jax.config("gan_mixture:smoke", {"train.batch_size": 10**6})
    with pytest.raises(ValueError, match=r"set train.batch_size"):
        next(aigc_jax.rows(config, tmp_path / "run"))


def test_a_callback_stops_a_run(tmp_path):
    config = aigc_jax.config("gan_mixture:smoke", SMALL)
    seen = []
    run = aigc_jax.train(config, tmp_path / "run", on_row=lambda step, _: seen.append(step) or True)
    assert seen[0] == 1
    assert run.model.step < 4
    assert aigc_jax.train(config, tmp_path / "run").model.step == 4


def test_samples_and_codes_are_arrays(run):
    samples = run.sample(5, seed=1)
    assert (samples.shape, samples.dtype) == ((5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(run.sample(3, seed=1), samples[:3])
    given = run.data("test", 7)
    codes = run.encode(given["x"])
    assert codes["mean"].shape == (7, 4)
    again = run.decode(codes["mean"])
    assert again.shape == given["x"].shape
    assert run.picture(samples, columns=5).size[0] >= 5 * 8
    with pytest.raises(SettingError, match="count is a whole number in"):
        run.sample(0)
    with pytest.raises(SettingError, match="trained without them"):
        run.sample(2, labels=[3])


def test_scores_and_metrics_of_a_run(run):
    (row,) = [row for row in run.evaluate(["examples"]) if row.metric == "kl"]
    assert row.n > 0
    steps, values = zip(*run.metrics()["net/loss"], strict=True)
    assert steps == (1, 2, 3, 4)
    assert np.isfinite(values).all()
    assert "step 4" in repr(run)


def test_a_run_samples_by_other_settings(run):
    warm = aigc_jax.load(run.workdir, sampling={"temperature": 0.5}).sample(4)
    assert (warm != run.sample(4)).any()
    with pytest.raises(SettingError, match="no 'sampler' of sampling"):
        aigc_jax.load(run.workdir, sampling={"sampler": "ddim"})


def test_an_editor_finds_every_name():
    assert {"config", "load", "rows", "train", "Run"} <= set(dir(aigc_jax))
    with pytest.raises(AttributeError, match="nothing"):
        _ = aigc_jax.nothing


def test_what_the_documentation_shows_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A model that compiles in a tenth of the time.
    config = api.config("vae_digits:smoke", SMALL)
    monkeypatch.setattr(aigc_jax, "config", lambda name, _: config, raising=False)
    text = (api.CONFIGS.parent / "docs" / "python.md").read_text()
    *blocks, of_codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(block.replace('{"sampler": "ddim", "steps": 20}', '{"temperature": 0.5}'), names)
    assert (tmp_path / "samples.png").is_file()
    assert len(names["losses"]) == 4
    exec(of_codes, {"run": run})
