"""CycleGAN as an experiment: the published recipe, a run from end to end, folders translated."""

import json
import re

import jax
import numpy as np
import pytest
import specs
import toys
from PIL import Image

from aigc_jax import build
from aigc_jax.commands import evaluate, sample, train, translate
from aigc_jax.family import Variables
from aigc_jax.networks.gan.cyclegan import Generator
from aigc_jax.runs import apply
from aigc_jax.runs.model import Model
from aigc_jax.training.optimizers import learning_rate
from configs import cyclegan_horse2zebra, cyclegan_maps, ddpm_digits


def test_the_configs_are_the_published_recipe():
    maps, horses = cyclegan_maps.get_config(), cyclegan_horse2zebra.get_config()
    assert (maps.network.generator.blocks, horses.network.generator.blocks) == (6, 9)
    # Enlarged to 143 and 286.
    sizes = [(c.data.image_size, c.augment.jitter) for c in (maps, horses)]
    assert sizes == [(128, 15), (256, 30)]
    assert (maps.train.steps, horses.train.steps) == (219_200, 266_800)
    for config in (maps, horses):
        assert (config.network.generator.width, config.network.discriminator.width) == (64, 64)
        assert config.network.discriminator.layers == 3
        settings = config.cyclegan
        assert (settings.loss, settings.adversarial, settings.pool) == ("least_squares", 2.0, 50)
        assert (settings.cycle_a, settings.cycle_b, settings.identity) == (10.0, 10.0, 0.5)
        o = config.optimizer
        assert (o.name, o.learning_rate, o.b1, o.b2, o.clip) == ("adam", 2e-4, 0.5, 0.999, 0.0)
        assert (config.train.batch_size, config.ema.half_life) == (1, 0.0)
        keys = ("schedule", "warmup", "decay_steps", "decay_start")
        rate = learning_rate(o.learning_rate, **{key: o[key] for key in keys})
        epoch = config.train.steps // 200
        found = [float(rate(n * epoch)) for n in (0, 50, 100, 150, 200)]
        np.testing.assert_allclose(found, [2e-4, 2e-4, 2e-4, 1e-4, 0], atol=1e-10)


def smoke(**changes):
    made = cyclegan_maps.get_config("smoke")
    with made.unlocked():
        made.update_from_flattened_dict(changes)
    return made


SPEC = specs.images((32, 32, 3), domains=2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data.train_split": "trainA"}, r"data.train_split is such as trainA\+trainB, not 'trai"),
        ({"data.test_split": "test"}, r"data.test_split is such as trainA\+trainB, not 'test'"),
        ({"network.discriminator.norm": "batch"}, "norm is one of instance, none, not 'batch'"),
        ({"cyclegan.loss": "lsgan"}, r"cyclegan\.loss is one of .*least_squares, .* not 'lsgan'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        build.build(smoke(**changes), SPEC)


def test_points_of_the_plane_are_refused():
    with pytest.raises(ValueError, match=r"cyclegan takes images; .* kind 'points'"):
        build.build(smoke(), specs.points())


def made(config, spec=SPEC):
    family = build.build(config, spec)
    # Random numbers of such a key compile several times faster on a CPU.
    key = jax.random.key(0, impl="rbg")
    return Model(config, spec, family, Variables(*jax.jit(family.init)(key)), 0)


@pytest.fixture(scope="module")
def model():
    return made(smoke())


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("0.png", "1.jpg", "deep/2.png"):
        Image.fromarray(rng.integers(0, 256, (42, 51, 3), np.uint8)).save(folder / name)
    return folder


def test_a_folder_is_translated_both_ways(model, photographs, tmp_path):
    found = {}
    for direction in ("a2b", "b2a"):
        out = tmp_path / direction
        path = apply.translate_folder(model, photographs, out, direction, batch_size=2)
        assert path == tmp_path / f"{direction}-compared.png"
        names = {p.relative_to(out).as_posix() for p in out.rglob("*.*")}
        assert names == {"0.png", "1.png", "deep/2.png"}
        found[direction] = np.stack([np.asarray(Image.open(out / n)) for n in ("0.png", "1.png")])
        assert found[direction].shape == (2, 42, 51, 3)  # as they came
        with Image.open(path) as compared:
            assert compared.size == (3 * 66 + 2, 2 * 66 + 2)
    assert (found["a2b"] != found["b2a"]).any()
    # Each is what the network of its direction makes of it, in whatever batch.
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    x = pixels.astype(np.float32) / 127.5 - 1
    network = Generator((32, 32, 3), 3, width=4, blocks=1)
    expected = jax.jit(network.apply)({"params": model.variables.params["generator"]["b2a"]}, x)
    images = apply.translate(model, pixels, "b2a", batch_size=2)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images / 127.5 - 1, expected, atol=1 / 127)


def test_what_cannot_be_translated_is_refused(model, photographs, tmp_path):
    with pytest.raises(ValueError, match="the direction is one of a2b, b2a, not 'b2c'"):
        apply.translate_folder(model, photographs, tmp_path / "out", "b2c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        apply.translate_folder(model, tmp_path / "empty", tmp_path / "out", "a2b")
    with pytest.raises(ValueError, match=r"no folder or .zip of images at .*: set --input"):
        apply.translate_folder(model, tmp_path / "gone", tmp_path / "out", "a2b")
    with pytest.raises(ValueError, match="takes images of 32x32x3, not 32x32x1"):
        apply.translate(model, np.zeros((2, 32, 32, 1), np.uint8), "a2b")
    with pytest.raises(ValueError, match=r"images are 4x18: .* 8 or a larger multiple of 4"):
        apply.translate(model, np.zeros((2, 4, 18, 3), np.uint8), "a2b")
    other = Model(ddpm_digits.get_config("smoke"), SPEC, toys.one_player(), Variables({}, {}), 0)
    with pytest.raises(ValueError, match="this model does not translate"):
        apply.translate_folder(other, photographs, tmp_path / "out", "a2b")
    with pytest.raises(ValueError, match="has neither an encoder nor a decoder"):
        apply.denoise_folder(model, photographs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def experiment_run(shared_tfds, tmp_path_factory):
    """The smoke variant, trained on maps of 32x32 pixels."""
    workdir = tmp_path_factory.mktemp("maps")
    setting = smoke(**{"evaluation.at_end": True})
    with setting.unlocked():
        setting.data.data_dir = shared_tfds
    with jax.default_prng_impl("rbg"):  # the initial weights compile several times faster
        train.run(setting, workdir)
    return workdir


def test_smoke_trains_evaluates_reports_and_translates(experiment_run, photographs, capsys):
    workdir = experiment_run
    rows = toys.rows(workdir)
    assert {row["step"] for row in rows if "generator/cycle_a" in row} == {2, 4}
    (path,) = (workdir / "evaluations").glob("*.json")
    assert re.fullmatch("step00000004-seed0-[0-9a-f]{8}", path.stem)  # no number of samples
    values = {row["metric"]: row for row in json.loads(path.read_text())["rows"]}
    names = {"cycle_a", "identity_b", "psnr/cycle_a", "psnr/cycle_b", "ssim/cycle_b"}
    assert names <= set(values)
    assert values["cycle_a"]["n"] == 200
    assert "psnr/cycle_b" in (workdir / "report.html").read_text()
    path = translate.run(workdir, photographs, direction="b2a")
    assert path == workdir / "translated" / "b2a-compared.png"
    said = f"translated b2a by step 4: {workdir / 'translated' / 'b2a'}, compared in {path}"
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="b2a is not empty: name another --output"):
        translate.run(workdir, photographs, direction="b2a")


def test_what_needs_samples_is_refused(experiment_run, shared_tfds, tmp_path):
    with pytest.raises(ValueError, match=r"draws none from noise: use --mode=translate.*samples"):
        sample.run(experiment_run)
    setting = smoke()
    with setting.unlocked():
        setting.evaluations = {"examples": {}, "fid": {}, "kid": {}}
        setting.data.data_dir = shared_tfds
    with pytest.raises(ValueError, match="do not ask for fid, kid"):
        evaluate.run(experiment_run, setting)
    with pytest.raises(ValueError, match="do not ask for fid, kid"):
        train.run(setting, tmp_path / "new")
    assert not (tmp_path / "new").exists()
