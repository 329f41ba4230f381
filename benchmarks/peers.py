"""The training steps of our configs in PyTorch, as its users write them.

Each maker takes (config, images [B, H, W, C] bytes, device, wrap) and returns (one step, number of
parameters). `wrap` is `torch.compile`, or what leaves a network eager. A step is the whole of it:
bytes to floats, forward, backward, clipping, the optimizer, an average of the weights. Networks and
settings are the config's; the numbers of parameters must be equal, which `train_speed.py` checks.
What nobody has written down here is a `NotHere`, with the reason.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Made = tuple[Callable[[], Any], int]


class NotHere(Exception):
    """A config without a peer, or one that cannot run here."""


def peer(config: Any, images: np.ndarray, device: str, wrap: Callable) -> Made:
    """The step of a config.

    Raises:
      NotHere: there is none, or it lacks a package.
    """
    makers = {"diffusion": ddpm, "vae": vae, "gan": gan}
    if config.family not in makers:
        raise NotHere(f"none of the family {config.family}")
    return makers[config.family](config, images, device, wrap)


def ddpm(config: Any, images: np.ndarray, device: str, wrap: Callable) -> Made:
    """Noise prediction by diffusers' UNet2DModel, which computes what our UNet does."""
    import torch

    from aigc_jax.formats import unet2d

    if importlib.util.find_spec("diffusers") is None:
        raise NotHere("diffusers is not installed")
    from diffusers import UNet2DModel

    network = config.network.to_dict()
    plain = config.diffusion.process.name == "discrete" and config.diffusion.prediction == "eps"
    if network.pop("name") != "unet" or not plain or config.diffusion.conditional:
        raise NotHere("only of the unconditional DDPM that predicts noise")
    size, channels = images.shape[1], images.shape[-1]
    own = unet2d.config_of(
        network | {"out_channels": channels}, image_size=size, in_channels=channels
    )
    unet = _placed(UNet2DModel(**{k: v for k, v in own.items() if k[0] != "_"}), device)
    run, autocast = wrap(unet), _precision(network["dtype"], device)
    held = _held(images, device)
    timesteps = config.diffusion.process.timesteps
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, timesteps, device=device), 0)
    trainer = Trainer(config, [unet], len(images))

    def step() -> Any:
        x = held.float() / 127.5 - 1
        if config.augment.flip:
            flip = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
            x = torch.where(flip, x.flip(3), x)
        t = torch.randint(timesteps, (len(x),), device=device)
        noise = torch.randn_like(x)
        a = alpha_bar[t, None, None, None]
        with autocast():
            found = run(a.sqrt() * x + (1 - a).sqrt() * noise, t).sample
        return trainer.move(torch.nn.functional.mse_loss(found.float(), noise))

    return step, _size(unet)


def vae(config: Any, images: np.ndarray, device: str, wrap: Callable) -> Made:
    """The ELBO of binarised pixels, one sample of z."""
    import torch
    from torch import nn

    network = config.network
    known = network.name == "conv" or (network.name == "mlp" and network.activation == "relu")
    if config.vae.binarise != "dynamic" or not known:
        raise NotHere("only of a binarised mlp or conv")
    shape = tuple(np.array(images.shape)[[3, 1, 2]].tolist())
    latent, pixels = network.latent, int(np.prod(shape))
    if network.name == "conv":
        a, b = network.widths
        side = shape[1] // 4
        encoder = nn.Sequential(
            *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, a, 3, 2), nn.ReLU()),
            *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(a, b, 3, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(side * side * b, 2 * latent)),
        )
        double = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        decoder = nn.Sequential(
            *(nn.Linear(latent, side * side * b), nn.ReLU(), nn.Unflatten(1, (b, side, side))),
            *(nn.ConvTranspose2d(b, b, **double), nn.ReLU()),
            *(nn.ConvTranspose2d(b, a, **double), nn.ReLU()),
            nn.Conv2d(a, 1, 3, padding=1),
        )
    else:
        encoder = nn.Sequential(nn.Flatten(), _mlp(pixels, network.hidden, 2 * latent, nn.ReLU))
        decoder = nn.Sequential(
            _mlp(latent, network.hidden[::-1], pixels, nn.ReLU), nn.Unflatten(1, shape)
        )
    encoder, decoder = _placed(encoder, device), _placed(decoder, device)
    held = _held(images, device)
    trainer = Trainer(config, [encoder, decoder], len(images))

    def loss(x: torch.Tensor) -> torch.Tensor:
        mean, logvar = encoder(x if network.name == "mlp" else 2 * x - 1).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        cross = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * torch.sum(mean**2 + torch.expm1(logvar) - logvar)
        return (cross + kl) / len(x)

    run = wrap(loss)
    return lambda: trainer.move(run(torch.bernoulli(held.float() / 255))), _size(encoder, decoder)


def gan(config: Any, images: np.ndarray, device: str, wrap: Callable) -> Made:
    """One update of each player: non-saturating, or relativistic with R1 and R2 at every step."""
    import torch
    from torch import nn

    game, network = config.gan, config.network
    relativistic = game.loss == "relativistic" and game.penalty.name == "r1_r2"
    plain = game.loss == "non_saturating" and game.penalty.name == "none"
    if not (relativistic or plain) or game.penalty.every > 1 or game.augment.policy:
        raise NotHere(f"none of the loss {game.loss} with the penalty {game.penalty.name}")
    if network.generator.name != network.discriminator.name or game.critics > 1:
        raise NotHere("none of these networks")
    makers = {"dcgan": _dcgan, "mlp": _mlp_gan}
    if network.generator.name not in makers:
        raise NotHere(f"none of the network {network.generator.name}")
    generator, discriminator = makers[network.generator.name](config, images)
    generator, discriminator = _placed(generator, device), _placed(discriminator, device)
    autocast = _precision(network.generator.get("dtype", "float32"), device)
    held = _held(images, device)
    of_g = Trainer(config, [generator], len(images))
    of_d = Trainer(config, [discriminator], len(images), averaged=False)
    run_g, run_d = wrap(generator), wrap(discriminator)
    softplus, latent = nn.functional.softplus, network.generator.latent

    def drawn() -> torch.Tensor:
        return run_g(torch.randn(len(held), latent, device=device))

    def squared_slope(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return slope.flatten(1).square().sum(1).mean()

    def step() -> Any:
        real = held.float() / 127.5 - 1
        with torch.no_grad(), autocast():
            fake = drawn()
        if relativistic:
            real, fake = real.requires_grad_(), fake.requires_grad_()
        with autocast():
            on_real, on_fake = run_d(real).float(), run_d(fake).float()
        if relativistic:
            loss = softplus(on_fake - on_real).mean()
            slopes = squared_slope(real, on_real) + squared_slope(fake, on_fake)
            loss = loss + game.penalty.weight / 2 * slopes
        else:
            loss = softplus(-on_real).mean() + softplus(on_fake).mean()
        of_d.move(loss)
        with autocast():
            on_fake = run_d(drawn()).float()
            on_real = run_d(real.detach()).float() if relativistic else 0.0
        return of_g.move(softplus(on_real - on_fake).mean())

    return step, _size(generator, discriminator)


def _dcgan(config: Any, images: np.ndarray) -> Sequence[Any]:
    """Radford et al.'s networks as in PyTorch's examples, with batch norm in both."""
    from torch import nn

    if config.network.discriminator.norm != "batch":
        raise NotHere("only of the DCGAN with batch norm in both networks")
    width, latent = config.network.generator.width, config.network.generator.latent
    size, channels = images.shape[1], images.shape[-1]
    doublings = (size - 1).bit_length() - 2  # of a map of 4x4, until the image fits in
    start, last, margin = 4, doublings - 1, ((4 << doublings) - size) // 2
    layers = [nn.Unflatten(1, (latent, 1, 1))]
    layers += [nn.ConvTranspose2d(latent, width << last, start, bias=False)]
    for i in range(last, -1, -1):
        layers += [nn.BatchNorm2d(width << i), nn.ReLU()]
        out = width << (i - 1) if i else channels
        layers.append(nn.ConvTranspose2d(width << i, out, 4, 2, 1, bias=False))
    generator = nn.Sequential(*layers, nn.ZeroPad2d(-margin), nn.Tanh())
    layers, before = [nn.ZeroPad2d(margin)], channels
    for i in range(doublings):
        layers.append(nn.Conv2d(before, width << i, 4, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(width << i)] * (i > 0) + [nn.LeakyReLU(0.2)]
        before = width << i
    layers += [nn.Conv2d(before, 1, start, bias=False), nn.Flatten(0)]
    return generator, nn.Sequential(*layers)


def _mlp_gan(config: Any, images: np.ndarray) -> Sequence[Any]:
    from torch import nn

    def leaky() -> nn.Module:
        return nn.LeakyReLU(0.2)

    shape = tuple(np.array(images.shape)[[3, 1, 2]].tolist())
    pixels, of_g, of_d = int(np.prod(shape)), config.network.generator, config.network.discriminator
    g = _mlp(of_g.latent, of_g.hidden, pixels, nn.ReLU)
    d = _mlp(pixels, of_d.hidden, 1, leaky)
    return (
        nn.Sequential(g, nn.Tanh(), nn.Unflatten(1, shape)),
        nn.Sequential(nn.Flatten(), d, nn.Flatten(0)),
    )


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, rectifier: Callable) -> Any:
    from torch import nn

    layers, before = [], inputs
    for width in hidden:
        layers += [nn.Linear(before, width), rectifier()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, outputs))


class Trainer:
    """Adam with a config's settings, clipping, and an average of the weights."""

    def __init__(
        self, config: Any, modules: Sequence[Any], batch: int, averaged: bool = True
    ) -> None:
        import torch

        setting = config.optimizer
        self._parameters = [p for m in modules for p in m.parameters()]
        self._clip = setting.clip
        self._adam = torch.optim.Adam(
            self._parameters,
            lr=setting.learning_rate,
            betas=(setting.b1, setting.b2),
            fused=self._parameters[0].is_cuda or None,
        )
        self._average = [p.detach().clone() for p in self._parameters] if averaged else []
        self._share = 1 - 0.5 ** (batch / config.ema.half_life)

    def move(self, loss: Any) -> Any:
        """One update by a loss, which is returned."""
        import torch

        self._adam.zero_grad()
        loss.backward(inputs=self._parameters)
        if self._clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._adam.step()
        if self._average:
            with torch.no_grad():
                torch._foreach_lerp_(self._average, self._parameters, self._share)
        return loss


def _held(images: np.ndarray, device: str) -> Any:
    """Bytes [B, C, H, W] on the device."""
    import torch

    return _placed(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), device)


def _placed(there: Any, device: str) -> Any:
    """A network or images on the device, on a GPU with channels last, which is faster there."""
    import torch

    return there.to(device, memory_format=torch.channels_last) if device == "cuda" else there


def _precision(dtype: str, device: str) -> Callable:
    """What a forward pass stands in."""
    import contextlib

    import torch

    if dtype == "bfloat16":
        return lambda: torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext


def _size(*modules: Any) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())
