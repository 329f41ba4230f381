"""Weights from elsewhere start a run or are sampled without one; ours serve diffusers."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import build, files
from aigc_jax.commands import export, sample, train
from aigc_jax.data import datasets
from aigc_jax.diffusion.model import START
from aigc_jax.diffusion.solvers.base import noise_like
from aigc_jax.family import DataSpec, Field
from aigc_jax.formats import diffusers as diffusers_folders
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs import weights
from aigc_jax.sampling.driver import draw, sample_keys
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.recipe import recipe
from configs import ddpm_digits, gan_mnist, vqvae_cifar

SPEC = DataSpec(
    {"x": Field("image", (8, 8, 1))},
    {"label": Field("label", (), 10)},
    {"train": 1501, "test": 296},
)
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
    family, config = build.build(config, SPEC), folders.as_dict(config)
    sections = {name: config[name] for name in ("optimizer", "ema", "augment")}
    plan = recipe(family, SPEC, batch_size=config["train"]["batch_size"], **sections)
    target = sharding.abstract_state(plan, mesh, "replicated")

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
    files.write_json(folder / "config.json", config)
    folders.write_spec(folder, SPEC)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(0, state, {"config": config})
    checkpoints.wait()
    checkpoints.close()
    return folder, jax.device_get(state)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "plain", smoke())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export.run(run[0], folder)
    return folder


def test_an_export_is_complete_or_not_there_and_over_nothing(run, tmp_path, monkeypatch):
    def stopped(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(diffusers_folders, "save_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            export.run(run[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_index.json").write_text("mine")
    with pytest.raises(ValueError, match="out is not empty: name another --output"):
        export.run(run[0], tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model_index.json"]


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
    keys = sample_keys(sharding.make_mesh(), seed, np.arange(8))[:count]
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
    model, mesh = models.load(tmp_path / "none", config), sharding.make_mesh()
    assert model.spec.fields == {"x": Field("image", (8, 8, 1))}
    ours = next(draw(model.driver(mesh), model.variables, mesh, seed=3, count=3))
    theirs = ddim_of_diffusers(folder, noises(3, 3, START), monkeypatch, 5)
    assert np.ptp(theirs) > 0.5
    np.testing.assert_allclose(np.clip(ours, -1, 1), theirs, atol=1e-3)


def test_a_run_and_its_export_are_sampled_alike_without_a_run(run, exported, tmp_path):
    settings = {"sampler": "ddim", "steps": 5}
    grids = []
    for i, source in enumerate((run[0], exported)):
        path = sample.run(
            tmp_path / f"{i}", smoke(init_from=str(source)), count=3, settings=settings, save="npz"
        )
        grids.append(np.load(path.with_suffix(".npz")))
    own = sample.run(run[0], count=3, settings=settings, save="npz", output=tmp_path / "own")
    grids.append(np.load(own.with_suffix(".npz")))
    for other in grids[1:]:
        difference = np.abs(other["x"].astype(int) - grids[0]["x"])
        assert difference.max() <= 1
    assert np.ptp(grids[0]["x"]) > 100
    assert "label" not in grids[0]  # a model without labels was asked for none


def test_labels_are_refused_by_a_model_without_them(run):
    with pytest.raises(ValueError, match=r"this model was trained without them"):
        sample.run(run[0], count=1, labels=[3])
    with pytest.raises(ValueError, match=r"guidance other than 1 needs diffusion.conditional"):
        sample.run(run[0], count=1, settings={"guidance": 2.0})
    with pytest.raises(ValueError, match=r"must be at least 1, not 0"):
        sample.run(run[0], count=0)
    with pytest.raises(ValueError, match=r"an animation needs a number of frames"):
        sample.run(run[0], count=1, gif=True)


@pytest.mark.parametrize("source", ["run", "flat"])
def test_training_starts_from_weights_from_elsewhere(source, request, tmp_path, monkeypatch):
    """The loop is given them; tests of the command `train` let it run."""
    found = request.getfixturevalue(source)
    if source == "run":
        folder, expected = found[0], found[1].ema
    else:
        folder, expected = found, {"net": diffusers_folders.read(found).params}
    given = []

    def loop(*_, initial, **__):
        given.append(initial)
        return types.SimpleNamespace(step=0)

    monkeypatch.setattr(train.loop, "train", loop)
    sources = {"train": None, "test": None}
    monkeypatch.setattr(datasets, "load", lambda *_, **__: datasets.Dataset(SPEC, sources))
    train.run(smoke(init_from=str(folder)), tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, given[0](), (dict(expected), {}))


def test_training_starts_from_the_best_of_a_run(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    (folder / "checkpoints").rename(folder / "best")
    config = smoke(init_from=str(folder / "best"))
    params, _ = models.initial(config.init_from, config, build.build(config, SPEC), SPEC)
    assert toys.same(params, run[1].ema)
    assert models.load(tmp_path / "none", config).spec == SPEC
    with pytest.raises(
        ValueError, match=r"best holds the best checkpoint of a run: say --workdir="
    ):
        train.run(smoke(), folder / "best")


@pytest.mark.parametrize(
    ("experiments", "names"),
    [(gan_mnist, {"generator"}), (vqvae_cifar, {"codebook", "counts", "sums"})],
)
def test_statistics_and_codebooks_go_with_the_weights(experiments, names, tmp_path):
    config = experiments.get_config("smoke")
    folder, state = random_run(tmp_path / "run", config)
    expected = {name: state.extra[name] for name in names}
    config.init_from = str(folder)
    _, transferred = models.initial(folder, config, build.build(config, SPEC), SPEC)
    assert transferred.keys() == names
    assert toys.same(transferred, expected)
    for found in (models.load(folder), models.load(tmp_path / "none", config)):
        assert toys.same(found.variables.extra, expected)


def test_another_network_of_a_run_is_named_by_its_differences(run):
    config = smoke(**{"network.width": 16, "network.blocks": 2})
    with pytest.raises(ValueError, match=r"do not fit config.network: .* and \d+ more"):
        models.initial(run[0], config, build.build(config, SPEC), SPEC)


def test_a_diffusers_folder_brings_its_own_network_and_says_so(exported, tmp_path, capsys):
    """Its weights fit no other; what training may choose stays as the config has it."""
    changes = {"network.width": 16, "network.blocks": 2, "network.dropout": 0.3}
    config = smoke(init_from=str(exported), **changes)
    model = models.load(tmp_path / "none", config)
    assert capsys.readouterr().out == (
        f"{exported}: its own network is taken, network.width: 16 here, 8 there; "
        "network.blocks: 2 here, 1 there\n"
    )
    taken = model.config["network"]
    assert (taken["width"], taken["blocks"], taken["dropout"]) == (8, 1, 0.3)
    same = smoke(init_from=str(exported), **{"network.attention": (16,)})  # which is never reached
    models.with_network(same, tmp_path)
    assert capsys.readouterr().out == ""
    # A run that began with it has the network written down, and needs the folder no more.
    run = tmp_path / "run"
    files.write_json(run / "config.json", folders.as_dict(model.config) | {"init_from": "gone"})
    folders.write_spec(run, SPEC)
    resumed = models.with_network(smoke(init_from="gone", **changes), run)
    assert resumed["network"] == taken
    assert folders.differences(model.config, resumed) == []
    assert capsys.readouterr().out == ""


def test_the_network_of_diffusers_own_example_is_sampled_by_any_config(tmp_path, capsys):
    """Its settings are keys of no config; at images of another size attention keeps its level."""
    diffusers = pytest.importorskip("diffusers")
    kinds = ["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"]
    settings = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}
    settings |= {"norm_num_groups": 4, "down_block_types": kinds[0], "up_block_types": kinds[1]}
    diffusers.UNet2DModel(**settings).save_pretrained(tmp_path / "hf")
    config = smoke(init_from=str(tmp_path / "hf"))
    model = models.load(tmp_path / "none", config)
    assert model.spec.shape == (8, 8, 3)
    found = {"norm_eps": 1e-5, "freq_shift": 0, "downsample_padding": 1, "flip_sin_to_cos": True}
    assert {key: model.config["network"][key] for key in found} == found
    assert "network.norm_eps: 1e-06 here, 1e-05 there" in capsys.readouterr().out
    assert model.config["network"]["attention"] == [4]
    # A run that began with it passes on what no config can say.
    own, run = smoke(**{"network.attention": (4,), "network.heads": 2}), tmp_path / "run"
    files.write_json(run / "config.json", folders.as_dict(model.config))
    folders.write_spec(run, model.spec)
    own.init_from = str(run)
    whole = {"scale_shift": False} | model.config["network"]
    assert models.with_network(own, tmp_path / "none")["network"] == whole
    own.network.heads = 1
    with pytest.raises(ValueError, match=r"run has other heads: give --config.network.heads=2"):
        models.with_network(own, tmp_path / "none")
    larger = models.with_network(config, tmp_path / "none", (16, 16, 3))
    assert larger["network"]["attention"] == [8]
    images = SPEC._replace(fields={"x": Field("image", (16, 16, 3))})
    models.initial(tmp_path / "hf", larger, build.build(larger, images), images)


@pytest.mark.parametrize("source", ["run", "exported"])
def test_weights_of_another_diffusion_are_not_sampled(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    folder = folder[0] if source == "run" else folder
    for settings, words in (
        (
            {"diffusion.process.schedule": "linear"},
            r"diffusion.process.schedule: linear here, cosine there",
        ),
        ({"diffusion.prediction": "v"}, r"diffusion.prediction: v here, eps there"),
        ({"diffusion.process.timesteps": 40}, r"diffusion.process.timesteps: 40 here, 20 there"),
    ):
        with pytest.raises(ValueError, match=words):
            sample.run(tmp_path, smoke(init_from=str(folder), **settings), count=1)


def test_the_scheduler_of_an_export_is_ours(exported):
    written = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert written["beta_schedule"] == "squaredcos_cap_v2"
    assert written["prediction_type"] == "epsilon"
    assert (written["num_train_timesteps"], written["timestep_spacing"]) == (20, "leading")
    assert (written["variance_type"], written["clip_sample"]) == ("fixed_small", True)


def test_the_shape_of_a_folder_is_read_without_its_weights(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert weights.diffusers_shape(folder) == ((8, 8, 1), 0)
    assert diffusers_folders.read_scheduler(folder) == diffusers_folders.read_scheduler(exported)
    with pytest.raises(FileNotFoundError, match="safetensors"):
        weights.from_diffusers(folder)


def test_what_diffusers_has_no_pipeline_for_is_told(run, tmp_path):
    config = gan_mnist.get_config("smoke")
    folder, _ = random_run(tmp_path / "gan", config)
    with pytest.raises(ValueError, match="diffusers has no pipeline for family 'gan'"):
        export.run(folder, tmp_path / "out")
    sections = {name: smoke()[name] for name in ("network", "diffusion", "sampling")}
    for field, words in (
        (Field("image", (8, 6, 1)), "draw square images, not 8x6"),
        (Field("points", (2,)), "draw images, not points"),
    ):
        spec = SPEC._replace(fields={"x": field})
        with pytest.raises(ValueError, match=words):
            weights.to_diffusers(tmp_path / "out", run[1].ema, spec, **sections)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(run, tmp_path):
    config = smoke(init_from=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone: download a checkpoint"):
        models.initial(config.init_from, config, build.build(config, SPEC), SPEC)
    with pytest.raises(FileNotFoundError, match=r"no run in .*: train first"):
        sample.run(tmp_path / "gone", count=1)
    with pytest.raises(FileNotFoundError, match=r"no run in"):
        sample.run(tmp_path / "gone", smoke(), count=1)
    empty = tmp_path / "empty"
    shutil.copytree(run[0], empty, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoints in .*: train first"):
        sample.run(empty, count=1)
