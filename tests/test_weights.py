"""Weights from elsewhere start a run or are sampled without one; ours serve diffusers."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import build, experiment, weights
from aigc_jax.data.datasets import DataSpec
from aigc_jax.networks import diffusers as folders
from aigc_jax.sampling import draw
from aigc_jax.training import rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.loop import recipe
from configs import ddpm_digits, gan_mnist, vqvae_cifar

SPEC = DataSpec((8, 8, 1), 10, {"train": 1501, "test": 296})
FLAT = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 4,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}


def smoke(variant="", **changes):
    config = ddpm_digits.get_config("smoke" + variant)
    config.update_from_flattened_dict({"evaluation.at_end": False, **changes})
    return config


def random_run(folder, config):
    """A run's folder with random weights at step 0, made without compiling anything."""
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    target = sharding.abstract_state(recipe(config, build.build(config, SPEC)), mesh, "replicated")

    def value(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        if not leaf.shape:
            return jax.device_put(np.zeros((), leaf.dtype), leaf.sharding)
        # Of unit scale, and small: what comes in by the sum of many has a variance of about one.
        fan_in = max(np.prod(leaf.shape[:-1]), 4)
        array = rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)
        return jax.device_put(array, leaf.sharding)

    state = jax.tree.map(value, target)
    rundir.write(folder, "config.json", rundir.as_dict(config))
    rundir.write(folder, "spec.json", SPEC._asdict())
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(0, state, {"config": rundir.as_dict(config)})
    checkpoints.wait()
    checkpoints.close()
    return folder, jax.device_get(state.ema)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "plain", smoke())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    experiment.export(run[0], folder)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A tiny model that diffusers itself wrote, flat as google/ddpm-cifar10-32 is."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flat")
    net = diffusers.UNet2DModel(**FLAT)
    net.save_pretrained(folder)
    diffusers.DDPMScheduler(20, beta_schedule="squaredcos_cap_v2").save_pretrained(folder)
    return folder


def noises(seed, count, salt):
    keys = sharding.sample_keys(sharding.make_mesh(), seed, 0, 8)[:count]
    from aigc_jax.diffusion.samplers import noise_like

    return np.asarray(noise_like(keys, (8, 8, 1), salt))


def ddim_of_diffusers(folder, noise, monkeypatch, steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    if (folder / "model_index.json").exists():
        pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    else:
        net = diffusers.UNet2DModel.from_pretrained(folder)
        scheduler = diffusers.DDIMScheduler.from_pretrained(folder)
        pipeline = diffusers.DDIMPipeline(net, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    module = __import__(diffusers.DDIMPipeline.__module__, fromlist=["randn_tensor"])
    start = torch.tensor(noise.transpose(0, 3, 1, 2))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: start)
    # Ours clips the estimate of x_0 and goes on with what was clipped.
    drawn = pipeline(
        len(noise), num_inference_steps=steps, output_type="np", use_clipped_model_output=True
    )
    return drawn.images * 2 - 1


@pytest.mark.parametrize("source", ["exported", "flat"])
def test_diffusers_draws_what_we_draw_from_the_same_noise(source, request, tmp_path, monkeypatch):
    """From a folder of ours and of theirs, both sampled here without a run."""
    folder = request.getfixturevalue(source)
    config = smoke(**{"init_from": str(folder), "sampling.sampler": "ddim", "sampling.steps": 5})
    _, spec, family, params, extra, _ = experiment.load(tmp_path / "none", config)
    assert spec.image_shape == (8, 8, 1)
    ours = next(draw(family.sample, params, extra, sharding.make_mesh(), seed=3, count=3))
    theirs = ddim_of_diffusers(folder, noises(3, 3, 20), monkeypatch, 5)
    assert np.ptp(theirs) > 0.5
    np.testing.assert_allclose(np.clip(ours, -1, 1), theirs, atol=1e-3)


def test_a_run_and_its_export_are_sampled_alike_without_a_run(run, exported, tmp_path):
    settings = {"sampler": "ddim", "steps": 5}
    grids = []
    for i, source in enumerate((run[0], exported)):
        path = experiment.sample(
            tmp_path / f"{i}", smoke(init_from=str(source)), count=3, settings=settings, save="npz"
        )
        grids.append(np.load(path.with_suffix(".npz")))
    own = experiment.sample(run[0], count=3, settings=settings, save="npz", output=tmp_path / "own")
    grids.append(np.load(own.with_suffix(".npz")))
    for other in grids[1:]:
        difference = np.abs(other["image"].astype(int) - grids[0]["image"])
        assert difference.max() <= 1
    assert np.ptp(grids[0]["image"]) > 100
    assert "label" not in grids[0]  # a model without labels was asked for none


def test_labels_are_refused_by_a_model_without_them(run):
    with pytest.raises(ValueError, match=r"this model was trained without them"):
        experiment.sample(run[0], count=1, labels=[3])
    with pytest.raises(ValueError, match=r"guidance other than 1 needs diffusion.conditional"):
        experiment.sample(run[0], count=1, settings={"guidance": 2.0})
    with pytest.raises(ValueError, match=r"must be at least 1, not 0"):
        experiment.sample(run[0], count=0)
    with pytest.raises(ValueError, match=r"an animation needs a number of frames"):
        experiment.sample(run[0], count=1, gif=True)


@pytest.mark.parametrize("source", ["run", "flat"])
def test_training_starts_from_weights_from_elsewhere(source, request, tmp_path, monkeypatch):
    """The loop is given them; tests/test_launch.py lets it run."""
    found = request.getfixturevalue(source)
    folder, expected = found if source == "run" else (found, {"net": folders.read(found).params})
    given = []

    def train(config, workdir, family, dataset, initial, origin):
        given.append(initial)
        return types.SimpleNamespace(step=0)

    monkeypatch.setattr(experiment.loop, "train", train)
    monkeypatch.setattr(
        experiment.datasets, "load", lambda **_: experiment.datasets.Dataset(SPEC, {})
    )
    experiment.train(smoke(init_from=str(folder)), tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, given[0](), (dict(expected), {}))


@pytest.mark.parametrize(
    ("experiments", "names"),
    [(gan_mnist, {"generator"}), (vqvae_cifar, {"codebook", "counts", "sums"})],
)
def test_statistics_and_codebooks_go_with_the_weights(experiments, names, tmp_path):
    config = experiments.get_config("smoke")
    folder, _ = random_run(tmp_path / "run", config)
    expected = experiment.load(folder).extra
    config.init_from = str(folder)
    _, carried = weights.load(folder, config, build.build(config, SPEC))
    assert carried.keys() == names
    assert toys.same(carried, {name: expected[name] for name in names})
    assert toys.same(experiment.load(tmp_path / "none", config).extra, expected)


def test_other_networks_are_named_by_their_differences(run, exported, tmp_path):
    config = smoke(**{"network.width": 16, "network.blocks": 2})
    family = build.build(config, SPEC)
    with pytest.raises(ValueError, match=r"network.width: 16 here, 8 there; network.blocks: 2 he"):
        weights.load(exported, config, family)
    with pytest.raises(ValueError, match=r"do not fit config.network: .* and \d+ more"):
        weights.load(run[0], config, family)
    conditional = smoke("+conditional")
    with pytest.raises(ValueError, match=r"\['label'\]\['embedding'\] is absent there, \(11, 32\)"):
        weights.load(exported, conditional, build.build(conditional, SPEC))


def test_settings_that_change_nothing_are_no_differences(exported):
    config = smoke(**{"network.attention": (16,), "network.dropout": 0.3})
    weights.load(exported, config, build.build(config, SPEC))


@pytest.mark.parametrize("source", ["run", "exported"])
def test_weights_of_another_diffusion_are_not_sampled(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    folder = folder[0] if source == "run" else folder
    for settings, words in (
        ({"diffusion.schedule": "linear"}, r"diffusion.schedule: linear here, cosine there"),
        ({"diffusion.prediction": "v"}, r"diffusion.prediction: v here, eps there"),
        ({"diffusion.timesteps": 40}, r"diffusion.timesteps: 40 here, 20 there"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment.sample(tmp_path, smoke(init_from=str(folder), **settings), count=1)


def test_the_scheduler_of_an_export_is_ours(exported):
    written = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert written["beta_schedule"] == "squaredcos_cap_v2"
    assert written["prediction_type"] == "epsilon"
    assert (written["num_train_timesteps"], written["timestep_spacing"]) == (20, "leading")
    assert (written["variance_type"], written["clip_sample"]) == ("fixed_small", True)


def test_what_is_not_there_is_told(run, tmp_path):
    config = smoke(init_from=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone: download a checkpoint"):
        weights.load(config.init_from, config, build.build(config, SPEC))
    with pytest.raises(FileNotFoundError, match=r"no run in .*: train first"):
        experiment.sample(tmp_path / "gone", count=1)
    with pytest.raises(FileNotFoundError, match=r"no run in"):
        experiment.sample(tmp_path / "gone", smoke(), count=1)
    empty = tmp_path / "empty"
    shutil.copytree(run[0], empty, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoints in .*: train first"):
        experiment.sample(empty, count=1)
