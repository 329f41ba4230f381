"""Checkpoints of diffusers: its network is ours, its folders are read, and ours are read by it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aigc_jax.formats import diffusers as ours
from aigc_jax.formats import unet2d
from aigc_jax.networks.unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_large",
    "prediction_type": "epsilon",
    "clip_sample": True,
}
NETWORK = {
    "out_channels": 3,
    "width": 16,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention": (8,),
    "heads": 1,
    "dropout": 0.1,
    "groups": 8,
    "num_classes": 0,
}
SHAPE = {"image_size": 16, "in_channels": 3}
# Of google/ddpm-cifar10-32, whose files lie flat in one folder.
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}


@functools.cache
def random_params(**changes):
    net = UNet(**{**NETWORK, **changes})
    x, t = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1,))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32),
        jax.eval_shape(net.init, jax.random.key(0), x, t)["params"],
    )


def write(folder, **changes):
    network = {**NETWORK, **changes}
    params = random_params(**changes)
    ours.write(folder, params, network=network, scheduler=SCHEDULER, **SHAPE)
    return network, params


def noise(size, batch=2):
    return np.random.default_rng(3).normal(size=(batch, size, size, 3)).astype(np.float32)


def theirs(torch, net, x, t, **labels):
    with torch.no_grad():
        y = net(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), **labels).sample
    return y.permute(0, 2, 3, 1).numpy()


def assert_close(found, expected, tolerance=1e-4):
    assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers")


def test_the_full_cifar10_network_of_diffusers_is_ours(torch, diffusers, tmp_path):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**CIFAR10).eval()
    with torch.no_grad():
        for p in net.parameters():  # norms and biases start alike, which would hide a mix-up
            p.add_(0.02 * torch.randn_like(p))
    net.save_pretrained(tmp_path)
    found = ours.read(tmp_path)
    expected = {
        "out_channels": 3,
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "heads": 1,
        "dropout": 0.0,
        "groups": 32,
        "num_classes": 0,
    }
    assert found.network == expected
    assert found[2:] == ({}, 32, 3)
    assert sum(a.size for a in jax.tree.leaves(found.params)) == 35_746_307
    x, apply = noise(32), jax.jit(UNet(**found.network).apply)
    for t in ([0, 999], [1, 500], [250, 3]):
        y = apply({"params": found.params}, x, jnp.array(t, jnp.float32))
        assert_close(y, theirs(torch, net, x, t))


# As diffusers' own example of unconditional training (train_unconditional.py) has it, but small:
# most of its settings are UNet2DModel's own.
EXAMPLE = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
OF_THE_EXAMPLE = {"norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True}
OF_THE_EXAMPLE |= {"freq_shift": 0, "heads": 1, "head_dim": 8, "scale_shift": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        # A rounding error of 1e-5 would hide in the tolerance.
        ({"norm_eps": 0.1, "flip_sin_to_cos": False}, {"norm_eps": 0.1, "flip_sin_to_cos": None}),
        (
            {"freq_shift": 1, "downsample_padding": 0},
            dict.fromkeys(("freq_shift", "downsample_padding")),
        ),
        (
            {"block_out_channels": (16, 16, 16), "resnet_time_scale_shift": "scale_shift"}
            | {"attn_norm_num_groups": 4},
            {"heads": 2, "head_dim": None, "scale_shift": True},
        ),
    ],
)
def test_the_network_of_diffusers_own_example_is_ours(
    torch, diffusers, tmp_path, changes, expected
):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**EXAMPLE | changes).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    net.save_pretrained(tmp_path)
    found = ours.read(tmp_path)
    assert {key: found.network.get(key) for key in OF_THE_EXAMPLE} == OF_THE_EXAMPLE | expected
    x, t = noise(16), [7, 800]
    apply = jax.jit(UNet(**found.network).apply)
    y = apply({"params": found.params}, x, jnp.array(t, jnp.float32))
    assert_close(y, theirs(torch, net, x, t), 1e-5)
    shape = {"image_size": found.image_size, "in_channels": found.in_channels}
    ours.write(tmp_path / "ours", found.params, network=found.network, scheduler={}, **shape)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet").eval()
    np.testing.assert_array_equal(theirs(torch, again, x, t), theirs(torch, net, x, t))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 4, "attention": (4, 8)},
        {"multipliers": (1, 1, 2), "attention": (4,), "blocks": 2},
    ],
)
def test_pipelines_of_diffusers_load_what_we_write(torch, diffusers, tmp_path, changes):
    network, params = write(tmp_path, **changes)
    ddpm = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    ddim = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    assert {k: ddpm.scheduler.config[k] for k in SCHEDULER} == SCHEDULER
    assert type(ddim.scheduler).__name__ == "DDIMScheduler"
    x, t = noise(16), [7, 800]
    y = jax.jit(UNet(**network).apply)({"params": params}, x, jnp.array(t, jnp.float32))
    for pipeline in (ddpm, ddim):
        assert_close(theirs(torch, pipeline.unet.eval(), x, t), y)
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(num_inference_steps=2, output_type="np").images
        assert image.shape == (1, 16, 16, 3)


def test_labels_keep_their_null_row(torch, diffusers, tmp_path):
    network, params = write(tmp_path, num_classes=5)
    assert ours.read(tmp_path).network == network
    net = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet").eval()
    x, t = noise(16), [7, 800]
    apply = jax.jit(UNet(**network).apply)
    for label in ([0, 4], [5, 5]):
        y = apply({"params": params}, x, jnp.array(t, jnp.float32), jnp.array(label))
        assert_close(theirs(torch, net, x, t, class_labels=torch.tensor(label)), y)


@pytest.mark.parametrize(
    "changes", [{}, {"heads": 2, "attention": (8, 4), "num_classes": 3}, {"attention": ()}]
)
def test_reading_gives_back_what_was_written_to_the_last_bit(tmp_path, changes):
    network, params = write(tmp_path / "new" / "folder", **changes)
    found = ours.read(tmp_path / "new" / "folder")
    assert found.network == network
    assert (found.image_size, found.in_channels) == (16, 3)
    assert {k: found.scheduler[k] for k in SCHEDULER} == SCHEDULER
    assert found.scheduler["_class_name"] == "DDPMScheduler"
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_a_folder_of_diffusers_is_written_back_to_the_last_bit(torch, diffusers, tmp_path):
    net = diffusers.UNet2DModel.from_config(
        CIFAR10 | {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}
    )
    net.save_pretrained(tmp_path / "theirs")
    found = ours.read(tmp_path / "theirs")
    shape = {"image_size": found.image_size, "in_channels": found.in_channels}
    ours.write(tmp_path / "ours", found.params, network=found.network, scheduler={}, **shape)
    before = load_file(tmp_path / "theirs" / WEIGHTS)
    after = load_file(tmp_path / "ours" / "unet" / WEIGHTS)
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key], err_msg=key)
    config = json.loads((tmp_path / "ours" / "unet" / "config.json").read_text())
    wanted = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config == wanted | {"_diffusers_version": config["_diffusers_version"]}


def edit(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def rename(folder, change):
    path = folder / WEIGHTS
    save_file({change(k): v for k, v in load_file(path).items()}, path)


def test_the_flat_layout_and_the_old_names_of_attention_are_read(tmp_path):
    _, params = write(tmp_path / "new")
    flat = tmp_path / "new" / "unet"
    (tmp_path / "new" / "scheduler" / "scheduler_config.json").rename(
        flat / "scheduler_config.json"
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rename(flat, lambda key: functools.reduce(lambda k, n: k.replace(n, old[n]), old, key))
    assert any("proj_attn.weight" in key for key in load_file(flat / WEIGHTS))
    found = ours.read(flat)
    assert found.scheduler["beta_end"] == 0.02
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_a_half_precision_file_is_read_as_float32(tmp_path):
    _, params = write(tmp_path)
    path = tmp_path / "unet" / WEIGHTS
    save_file({k: v.astype(np.float16) for k, v in load_file(path).items()}, path)
    found = ours.read(tmp_path).params
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32)),
        found,
        params,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"add_attention": False}, "add_attention=False"),
        ({"downsample_padding": 2, "act_fn": "gelu"}, r"act_fn='gelu' .*downsample_padding=2"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups=None \(only 8\)"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"invented": 3}, "invented=3"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "same ones both ways"),
        ({"up_block_types": ["UpBlock2D"] * 2}, "must be 3 of UpBlock2D"),
        ({"sample_size": [16, 32]}, r"sample_size.*\[16, 32\]"),
        ({"sample_size": None}, "sample_size.*None"),
        ({"block_out_channels": [16, 24, 32]}, r"\[16, 24, 32\]"),
        ({"attention_head_dim": 5}, r"attention_head_dim=5 .*does not divide each of \[32\]"),
        ({"layers_per_block": 2}, "missing: down_blocks.0.resnets.1.conv1.bias"),
        ({"out_channels": 6}, r"of another shape: conv_out.bias \(3,\), not \(6,\)"),
    ],
)
def test_what_unet_does_not_have_is_named(tmp_path, settings, words):
    write(tmp_path)
    edit(tmp_path / "unet", **settings)
    with pytest.raises(ValueError, match=words):
        ours.read(tmp_path)


def test_an_unexpected_tensor_is_named(tmp_path):
    write(tmp_path)
    rename(tmp_path / "unet", lambda key: key.replace("conv_in.bias", "conv_in.offset"))
    with pytest.raises(ValueError, match=r"missing: conv_in\.bias; .*unexpected: conv_in\.offset"):
        ours.read(tmp_path)


def test_what_is_absent_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf download google/ddpm-cifar10-32"):
        ours.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ours.read(tmp_path)
    write(tmp_path)
    weights = tmp_path / "unet" / WEIGHTS
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        ours.read(tmp_path)


def test_bin_files_of_older_releases_are_read_too(diffusers, tmp_path):
    _, params = write(tmp_path)
    unet = tmp_path / "unet"
    net = diffusers.UNet2DModel.from_pretrained(unet)
    (unet / WEIGHTS).unlink()
    net.save_pretrained(unet, safe_serialization=False)
    assert not (unet / WEIGHTS).exists()
    jax.tree.map(np.testing.assert_array_equal, ours.read(tmp_path).params, params)


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"network\.heads=2 over \[16, 32\]"):
        write(tmp_path, heads=2, attention=(16,))
    for extra in ({"augment_dim": 9}, {"second_time": True}):
        with pytest.raises(ValueError, match=rf"network\.{next(iter(extra))}"):
            write(tmp_path, **extra)
    with pytest.raises(ValueError, match="missing: conv_in/bias"):
        ours.write(tmp_path, {}, network=NETWORK, scheduler={}, **SHAPE)
    with pytest.raises(ValueError, match="of another shape: conv_in/kernel"):
        ours.write(
            tmp_path,
            random_params(),
            network=NETWORK,
            scheduler={},
            image_size=16,
            in_channels=1,
        )
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def cut_short(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ours, "save_file", cut_short)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, num_classes=5)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_the_network_and_the_scheduler_are_read_without_the_weights(tmp_path):
    network, _ = write(tmp_path)
    (tmp_path / "unet" / WEIGHTS).unlink()
    assert ours.read_network(tmp_path) == (network, 16, 3)
    assert {k: ours.read_scheduler(tmp_path)[k] for k in SCHEDULER} == SCHEDULER


def test_one_training_step_moves_the_weights_as_torch_does(torch, diffusers, tmp_path):
    network, params = write(tmp_path, dropout=0.0)
    x, eps, t = noise(16), noise(16)[::-1], np.float32([3, 800])

    def loss_of(params):
        return jnp.mean((UNet(**network).apply({"params": params}, x, jnp.asarray(t)) - eps) ** 2)

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    found = unet2d.to_tensors(grads, network=network, **SHAPE)

    net = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    out = net(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)).sample
    expected = ((out.permute(0, 2, 3, 1) - torch.tensor(eps.copy())) ** 2).mean()
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    expected = {name: parameter.grad.numpy() for name, parameter in net.named_parameters()}
    # The bias of an attention's keys has no gradient but rounding: softmax does not see it.
    floor = 1e-6 * max(np.abs(grad).max() for grad in expected.values())
    for name, grad in expected.items():
        assert np.abs(found[name] - grad).max() < 1e-3 * np.abs(grad).max() + floor, name
