"""The very deep VAE: a ladder of latents, from 1x1 up to the resolution of the image.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images", 2020
(arXiv:2011.10650). Encoder and decoder are spelt as in openai/vdvae, one word for some blocks:
    16x6: six blocks at resolution 16.
    16d2: one block at resolution 16, then the map is pooled by 2.
    16m8: the map goes from resolution 8 up to 16, then one block.
"""

import re
from functools import partial
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, DType, Range, Whole
from aigc_jax.errors import SettingError
from aigc_jax.gaussian import normal_kl
from aigc_jax.networks.layers import ZERO, check_shape, conv, dense, nearest

WORD = re.compile(r"(\d+)([xdm])(\d+)")


class Block(NamedTuple):
    """One block: works at `resolution`; `pool` divides it afterwards, `unpool` is what it was."""

    resolution: int
    pool: int = 1
    unpool: int | None = None


def parse(string: str, setting: str = "network.decoder") -> list[Block]:
    """The blocks that a string such as "32x11,32d2,16x6" spells.

    ValueError, which names the setting and the word, for what is not spelt so or does not divide.
    """
    blocks = []
    for word in string.split(","):
        where = f"{word!r} in {setting}={string!r}"
        match = WORD.fullmatch(word.strip())
        if not match:
            raise SettingError(f"{where} is not like 16x6, 16d2 or 16m8")
        n, kind, k = int(match[1]), match[2], int(match[3])
        if n == 0 or k == 0:
            raise SettingError(f"{where} has a zero")
        if kind in "dm" and n % k:
            raise SettingError(f"{where}: {k} does not divide {n}")
        if kind == "m" and n == k:
            raise SettingError(f"{where} does not change the resolution")
        blocks += {"x": [Block(n)] * k, "d": [Block(n, pool=k)], "m": [Block(n, unpool=k)]}[kind]
    return blocks


def ladder_blocks(image_size: int, encoder: str, decoder: str) -> tuple[list[Block], list[Block]]:
    """The blocks of both strings, once they are known to fit the image and each other.

    ValueError that names the string and the resolution at which it does not.
    """
    down, up = parse(encoder, "network.encoder"), parse(decoder)
    resolution = image_size
    for block in down:
        if block.unpool:
            raise SettingError(f"the encoder {encoder!r} goes up to {block.resolution}")
        if block.resolution != resolution:
            raise SettingError(
                f"the encoder {encoder!r} has a block at resolution {block.resolution} where its "
                f"map is {resolution}, for images of {image_size}"
            )
        resolution //= block.pool
    known = {block.resolution for block in down} | {resolution}

    if up[0].unpool:
        raise SettingError(f"the decoder {decoder!r} has no map of {up[0].unpool} to start from")
    resolution = up[0].resolution
    for block in up:
        if block.pool > 1:
            raise SettingError(f"the decoder {decoder!r} pools at {block.resolution}")
        if (block.unpool or block.resolution) != resolution:
            raise SettingError(
                f"the decoder {decoder!r} expects a map of {block.unpool or block.resolution} "
                f"where it is {resolution}"
            )
        resolution = block.resolution
        if resolution not in known:
            raise SettingError(
                f"the decoder {decoder!r} has blocks at resolution {resolution}, the encoder "
                f"{encoder!r} has none"
            )
    if resolution != image_size:
        raise SettingError(f"the decoder {decoder!r} ends at {resolution}, images are {image_size}")
    return down, up


class Ladder(nn.Module):
    """A hierarchical VAE: 39,145,700 parameters for CIFAR-10 at its default widths.

    Attributes:
        shape: (H, W, C) of the input. ValueError unless H = W and the strings fit it.
        out_channels: channels of the output: 100 for ten logistics over three colours.
        width: channels of every map.
        latent: channels of the latents of every block.
        encoder: the blocks from the image down.
        decoder: the blocks from the top up; each draws one group of latents.
        bottleneck: channels inside a block, as a share of the width.
        bias: resolutions up to this one start from a learned map, larger ones from zeros.
        dtype: of the activations, "float32" or "bfloat16". Parameters are float32, and so are
            means, log deviations, KL and the last convolution.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    out_channels: int = 100
    width: Count = 384
    latent: Count = 16
    encoder: str = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3"
    decoder: str = "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
    bottleneck: Annotated[float, Range(0, 1, above=True)] = 0.25
    bias: Whole = 64
    dtype: DType = "float32"

    def setup(self) -> None:
        height, width, _ = self.shape
        if height != width:
            raise SettingError(
                f"a ladder needs square images, not {'x'.join(map(str, self.shape))}"
            )
        self._down, self._up = ladder_blocks(height, self.encoder, self.decoder)
        middle = int(self.width * self.bottleneck)
        if middle < 1:
            raise SettingError(
                f"network.bottleneck={self.bottleneck} of network.width={self.width} is no channel"
            )
        self.stem = nn.Conv(self.width, (3, 3), dtype=self.dtype, kernel_init=_init())
        self.down = [Bottleneck(self.width, middle, share=1 / len(self._down)) for _ in self._down]
        self.up = [
            TopDown(self.width, middle, self.latent, share=1 / len(self._up)) for _ in self._up
        ]
        self.starts = {
            str(n): self.param(f"start_{n}", ZERO, (1, n, n, self.width))
            for n in sorted({block.resolution for block in self._up})
            if n <= self.bias
        }
        self.gain = self.param("gain", nn.initializers.ones_init(), (self.width,))
        self.shift = self.param("shift", ZERO, (self.width,))
        self.out = nn.Dense(self.out_channels, kernel_init=_init())

    def __call__(self, x: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The outputs [B, H, W, out_channels] and KL(q || p) [blocks, B] in nats, both float32.

        x: [B, H, W, C] in [-1, 1]. keys: [B], one for each example, whose latents they draw.
        The first row of the KL is the top of the ladder.
        """
        return self._top_down(keys, self._bottom_up(x), len(self._up), 1.0)

    def generate(self, keys: jax.Array, temperature: float = 1.0) -> jax.Array:
        """Outputs [n, H, W, out_channels] for latents drawn from the prior.

        keys: [n], one for each example. temperature: of the deviations; 0 gives the means.
        """
        outputs, _ = self._top_down(keys, {}, 0, temperature)
        return outputs

    def reconstruct(
        self, x: jax.Array, keys: jax.Array, groups: int, temperature: float = 1.0
    ) -> jax.Array:
        """Outputs with the first `groups` blocks' latents from the posterior.

        The others are from the prior, at `temperature`: what the upper groups hold of an image.
        ValueError for more groups than blocks.
        """
        if not 0 <= groups <= len(self._up):
            raise SettingError(f"{groups} groups of a ladder that has {len(self._up)}")
        outputs, _ = self._top_down(keys, self._bottom_up(x), groups, temperature)
        return outputs

    def _bottom_up(self, x: jax.Array) -> dict[int, jax.Array]:
        """The last map of each resolution."""
        check_shape(x, self.shape)
        h = self.stem(x.astype(self.dtype))
        maps = {}
        for spec, block in zip(self._down, self.down, strict=True):
            h = h + block(h)
            maps[spec.resolution] = h
            if spec.pool > 1:
                h = nn.avg_pool(h, (spec.pool, spec.pool), (spec.pool, spec.pool))
                maps[spec.resolution // spec.pool] = h
        return maps

    def _top_down(
        self, keys: jax.Array, maps: dict[int, jax.Array], groups: int, temperature: float
    ) -> tuple[jax.Array, jax.Array]:
        h, kl = None, []
        for j, (spec, block) in enumerate(zip(self._up, self.up, strict=True)):
            n = spec.resolution
            if j == 0:
                h = self._start(n, keys.shape[0])
            elif spec.unpool:
                h = self._start(n, keys.shape[0]) + nearest(h, n // h.shape[1])
            noise = jax.vmap(partial(_noise, block=j, shape=(n, n, self.latent)))(keys)
            h, kl_B = block(h, noise, maps[n] if j < groups else None, temperature)
            kl.append(kl_B)
        h = h.astype(jnp.float32) * self.gain.reshape(1, 1, 1, -1)
        return self.out(h + self.shift.reshape(1, 1, 1, -1)), jnp.stack(kl)

    def _start(self, n: int, batch: int) -> jax.Array:
        zeros = jnp.zeros((1, n, n, self.width), jnp.float32)
        start = self.starts.get(str(n), zeros)
        return jnp.broadcast_to(start, (batch, *start.shape[1:])).astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3, 3x3 and 1x1 convolutions, each after a GELU. [B, N, N, C] to [B, N, N, features].

    share: of the last kernel's variance; 0 starts it at zero. Up to 2x2 all convolutions are 1x1.
    """

    features: int
    middle: int
    share: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = conv if x.shape[1] > 2 else dense
        h = dense(_gelu(x), self.middle, name="conv1", init=_init())
        h = inner(_gelu(h), self.middle, name="conv2", init=_init())
        h = inner(_gelu(h), self.middle, name="conv3", init=_init())
        return dense(_gelu(h), self.features, name="conv4", init=_init(self.share))


class TopDown(nn.Module):
    """One group of latents: drawn from the posterior where there is an encoder's map, else prior.

    x, maps: [B, N, N, C]. noise: [B, N, N, latent], standard normal. Returns the next x and
    KL(q || p) [B], zeros where z is of the prior. Temperature applies to the prior only.
    """

    width: int
    middle: int
    latent: int
    share: float

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, maps: jax.Array | None, temperature: float
    ) -> tuple[jax.Array, jax.Array]:
        prior = Bottleneck(2 * self.latent + self.width, self.middle, share=0.0, name="prior")(x)
        p, features = jnp.split(prior, [2 * self.latent], axis=-1)
        p_mean, p_logstd = jnp.split(p.astype(jnp.float32), 2, axis=-1)
        if maps is None:
            z = p_mean + temperature * jnp.exp(p_logstd) * noise
            kl = jnp.zeros(x.shape[:1], jnp.float32)
        else:
            posterior = Bottleneck(2 * self.latent, self.middle, name="posterior")
            q = posterior(jnp.concatenate([x, maps], axis=-1)).astype(jnp.float32)
            q_mean, q_logstd = jnp.split(q, 2, axis=-1)
            z = q_mean + jnp.exp(q_logstd) * noise
            kl = normal_kl(q_mean, 2 * q_logstd, p_mean, 2 * p_logstd).sum(axis=(1, 2, 3))
        x = x + features
        x = x + dense(z.astype(x.dtype), self.width, name="latent", init=_init(self.share))
        return x + Bottleneck(self.width, self.middle, share=self.share, name="residual")(x), kl


def _noise(key: jax.Array, block: int, shape: tuple[int, ...]) -> jax.Array:
    """Of one example: a function of its key alone, whatever batch it is in."""
    return jax.random.normal(jax.random.fold_in(key, block), shape)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _init(share: float = 1.0) -> nn.initializers.Initializer:
    """PyTorch's default, which the published code scales: uniform, of variance share/(3 fan_in)."""
    return nn.initializers.variance_scaling(share / 3, "fan_in", "uniform") if share else ZERO
