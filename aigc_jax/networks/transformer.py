"""DiT, a transformer on patches of an image or of a latent.

Peebles & Xie, "Scalable Diffusion Models with Transformers", 2022 (arXiv:2212.09748): adaLN-Zero.
Sequences that condition it, such as encoded text, enter by cross-attention as in PixArt-alpha (Chen
et al. 2023, arXiv:2310.00426) or in one attention with the patches as in MM-DiT (Esser et al. 2024,
arXiv:2403.03206). The options are those of later work: rotary positions (Su et al. 2021,
arXiv:2104.09864), queries and keys normalised (Dehghani et al. 2023, arXiv:2302.05442), and SwiGLU
(Shazeer 2020, arXiv:2002.05202).
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import Count, DType, OneOf, Range, Whole
from aigc_jax.errors import SettingError
from aigc_jax.networks.layers import (
    EPSILON,
    MAX_PERIOD,
    ZERO,
    augment_embedding,
    block_of,
    check_extra,
    check_label,
    dense,
    label_embedding,
    sinusoidal_embedding,
)

# name -> depth, width, heads: table 1 of the paper.
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
FREQUENCIES = 256  # sines and cosines of a time
EMBEDDING = nn.initializers.normal(0.02)  # of times, labels and the empty context


class DiT(nn.Module):
    """A map from a noisy image or latent and its time step to an array of the same sides.

    Attributes:
        out_channels: channels of the output; twice the input's where a variance is learned.
        size: "S", "B", "L" or "XL" of the paper, or "" where the next three are all given.
        depth, width, heads: blocks, channels and heads of an attention; 0 is that of `size`.
        patch: side of a patch.
        position: "sincos" adds sines and cosines of row and column to the patches; "rope" turns
            queries and keys by them instead.
        qk_norm: RMS norms of queries and keys.
        swiglu: a gated layer of 2/3 of the width in place of the GELU, at the same cost.
        context: how a sequence conditions the patches: "cross" lets them attend to it, "joint"
            attends over both, each with weights of its own; "" for none.
        context_dim: channels of that sequence.
        num_classes, augment_dim, second_time, freq_shift, dtype: as `unet.UNet`'s.
    """

    out_channels: int
    size: Annotated[str, OneOf(("", *SIZES))] = "S"
    depth: Whole = 0
    width: Whole = 0
    heads: Whole = 0
    patch: Count = 2
    position: Annotated[str, OneOf(("sincos", "rope"))] = "sincos"
    qk_norm: bool = False
    swiglu: bool = False
    num_classes: int = 0
    context: Annotated[str, OneOf(("", "cross", "joint"))] = ""
    context_dim: Whole = 0
    augment_dim: Whole = 0
    second_time: bool = False
    freq_shift: Annotated[int, Range(0, 1)] = 0
    dtype: DType = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None = None,
        *,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        augment: jax.Array | None = None,
        t2: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns [B, H, W, out_channels] float32. There is no dropout: `train` changes nothing.

        x: [B, H, W, C]. t: [B], in steps 0..T-1. label: [B] int32; num_classes, like no label at
        all, is the null row. context: [B, L, context_dim]; context_mask: bool [B, L], where it
        holds tokens, everywhere if it is None. An example without any token, like no context at
        all, has a learned one of its own. augment: [B, augment_dim] float32, zeros where it is
        None. t2: [B], as t, which it is where it is None.
        ValueError for sides that the patch does not divide, for a size that is not whole and for
        an input that the attributes do not announce.
        """
        depth, width, heads = self._size()
        self._check(x, label, context, context_mask)
        check_extra(augment, self.augment_dim, t2, self.second_time)
        batch, rows, columns = len(x), x.shape[1] // self.patch, x.shape[2] // self.patch

        h = dense(patches(x.astype(self.dtype), self.patch), width, name="patches_in")
        angles = None
        if self.position == "sincos":
            h = h + sincos_positions(rows, columns, width).astype(h.dtype)[None]
        else:
            of_both = grid_angles(rows, columns, width // heads // 4)
            angles = jnp.asarray(np.concatenate(of_both, axis=1), jnp.float32)

        condition = nn.swish(self._embedding(t, label, augment, t2, width))
        tokens, visible = self._tokens(context, context_mask, batch, width)
        for i in range(depth):
            block = block_of(Block, self.remat)(
                heads=heads,
                context=self.context,
                qk_norm=self.qk_norm,
                swiglu=self.swiglu,
                last=i == depth - 1,
                name=f"block_{i}",
            )
            h, tokens = block(h, condition, angles, tokens, visible)

        shift, scale = modulation(condition, width, 2, name="modulation_out")
        h = modulated(h.astype(jnp.float32), shift, scale)
        h = dense(h, self.patch**2 * self.out_channels, name="patches_out", init=ZERO)
        h = h.reshape(batch, rows, columns, self.patch, self.patch, self.out_channels)
        return h.swapaxes(2, 3).reshape(*x.shape[:3], self.out_channels)

    def _embedding(
        self,
        t: jax.Array,
        label: jax.Array | None,
        augment: jax.Array | None,
        t2: jax.Array | None,
        width: int,
    ) -> jax.Array:
        """The time, and whatever else but a context the network is told, [B, width] float32."""
        h = self._time(t, width, "time")
        if self.second_time:
            h = h + self._time(t if t2 is None else t2, width, "second_time")
        if self.augment_dim:
            h = h + augment_embedding(augment, len(t), self.augment_dim, width)
        if self.num_classes:
            h = h + label_embedding(label, len(t), self.num_classes, width, EMBEDDING)
        return h

    def _time(self, t: jax.Array, width: int, name: str) -> jax.Array:
        h = sinusoidal_embedding(t, FREQUENCIES, freq_shift=self.freq_shift, flip_sin_to_cos=True)
        h = nn.swish(dense(h, width, name=f"{name}_0", init=EMBEDDING))
        return dense(h, width, name=f"{name}_1", init=EMBEDDING)

    def _tokens(
        self, context: jax.Array | None, mask: jax.Array | None, batch: int, width: int
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """The context [B, 1 + L, width], the empty one in front, and what of it is seen, bool."""
        if not self.context:
            return None, None
        if context is None:
            context = jnp.zeros((batch, 0, self.context_dim))
        if mask is None:
            mask = jnp.ones(context.shape[:2], bool)
        mask = mask.astype(bool)
        empty = self.param("context_empty", EMBEDDING, (1, 1, self.context_dim))
        empty = jnp.broadcast_to(empty, (batch, 1, self.context_dim))
        context = jnp.concatenate([empty, context.astype(empty.dtype)], axis=1)
        visible = jnp.concatenate([~mask.any(axis=1, keepdims=True), mask], axis=1)
        return dense(context.astype(self.dtype), width, name="context_in"), visible

    def _size(self) -> tuple[int, int, int]:
        of_size = SIZES.get(self.size, (0, 0, 0))
        given = (self.depth, self.width, self.heads)
        depth, width, heads = (n or m for n, m in zip(given, of_size, strict=True))
        if not (depth and width and heads):
            raise SettingError(
                "a transformer needs network.size, or all of network.depth, network.width and "
                f"network.heads, not {given}"
            )
        if width % heads or width % 4 or (self.position == "rope" and width // heads % 4):
            raise SettingError(
                f"network.width={width} must be a multiple of 4 and of network.heads={heads}, and "
                "of 4 times that for network.position='rope'"
            )
        return depth, width, heads

    def _check(
        self,
        x: jax.Array,
        label: jax.Array | None,
        context: jax.Array | None,
        mask: jax.Array | None,
    ) -> None:
        check_label(label, self.num_classes, optional=True)
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch or not height * width:
            raise SettingError(
                f"images are {height}x{width}, which network.patch={self.patch} does not divide"
            )
        if bool(self.context) != bool(self.context_dim):
            raise SettingError(
                f"network.context={self.context!r} and network.context_dim={self.context_dim}: "
                "give both or neither"
            )
        if context is not None and (not self.context or context.shape[2] != self.context_dim):
            raise SettingError(
                f"a context of shape {context.shape} was given to a network with network.context="
                f"{self.context!r} and network.context_dim={self.context_dim}"
            )
        if mask is not None and (context is None or mask.shape != context.shape[:2]):
            of = "no context" if context is None else f"a context of shape {context.shape}"
            raise SettingError(f"a mask of shape {mask.shape} was given with {of}")


class Block(nn.Module):
    """Attention and a layer for each token, each between a norm and a gate that the condition sets.

    x: [B, N, D], the patches. condition: [B, D] float32. angles: [N, D / heads / 2] by which
    queries and keys of the patches turn, or None. tokens: [B, L, D], the context, of which bool
    visible [B, L] is seen, or None. Returns x and tokens of the same shapes.

    Attributes:
        context, qk_norm, swiglu: as DiT's.
        last: nothing reads the tokens after this block, so it does not compute them.
    """

    heads: int
    context: str = ""
    qk_norm: bool = False
    swiglu: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None = None,
        tokens: jax.Array | None = None,
        visible: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        width, count = x.shape[-1], x.shape[1]
        # What attends together, by the prefix of its weights' names.
        streams, mask = {"": x}, None
        if self.context == "joint":
            streams["context_"] = tokens
            mask = jnp.pad(visible, ((0, 0), (count, 0)), constant_values=True)[:, None, None, :]

        settings, heads = {}, []
        for name, h in streams.items():
            parts = 2 if name and self.last else 6
            settings[name] = modulation(condition, width, parts, name=f"{name}modulation")
            h = modulated(h, *settings[name][:2])
            heads.append(self._qkv(h, name, None if name else angles))
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*heads, strict=True))
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(*q.shape[:2], width)
        attended = jnp.split(attended, [count], axis=1)

        for (name, h), found in zip(streams.items(), attended, strict=False):
            if name and self.last:
                continue
            _, _, gate, shift, scale, gate_mlp = settings[name]
            h = h + gate.astype(h.dtype) * dense(found, width, name=f"{name}out")
            if self.context == "cross":
                h = h + self._cross(h, tokens, visible)
            h = h + gate_mlp.astype(h.dtype) * self._mlp(modulated(h, shift, scale), name)
            streams[name] = h
        return streams[""], streams.get("context_", tokens)

    def _qkv(
        self, x: jax.Array, name: str, angles: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.split(dense(x, 3 * x.shape[-1], name=f"{name}qkv"), 3, axis=-1)
        q, k = self._heads(q, f"{name}q", angles), self._heads(k, f"{name}k", angles)
        return q, k, self._split(v)

    def _cross(self, x: jax.Array, tokens: jax.Array, visible: jax.Array) -> jax.Array:
        """What the patches find in the tokens [B, N, D]; zero at first."""
        width = x.shape[-1]
        q = dense(layer_norm(x).astype(x.dtype), width, name="cross_q")
        k, v = jnp.split(dense(tokens, 2 * width, name="cross_kv"), 2, axis=-1)
        q, k = self._heads(q, "cross_q"), self._heads(k, "cross_k")
        mask = visible[:, None, None, :]
        h = jax.nn.dot_product_attention(q, k, self._split(v), mask=mask)
        return dense(h.reshape(x.shape), width, name="cross_out", init=ZERO)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _heads(self, x: jax.Array, name: str, angles: jax.Array | None = None) -> jax.Array:
        """Queries or keys [B, N, D] as [B, N, heads, D / heads], normalised and turned if asked."""
        h = self._split(x)
        if self.qk_norm:
            h = nn.RMSNorm(EPSILON, jnp.float32, name=f"{name}_norm")(h)
        if angles is not None:
            h = turned(h.astype(jnp.float32), angles)
        return h.astype(x.dtype)

    def _mlp(self, x: jax.Array, name: str) -> jax.Array:
        width = x.shape[-1]
        if self.swiglu:
            hidden = -(-8 * width // 3 // 32) * 32  # a multiple of 32 suits matrix units
            h, gate = jnp.split(dense(x, 2 * hidden, name=f"{name}mlp_0"), 2, axis=-1)
            h = h * nn.swish(gate)
        else:
            h = nn.gelu(dense(x, 4 * width, name=f"{name}mlp_0"), approximate=True)
        return dense(h, width, name=f"{name}mlp_1")


def modulation(condition: jax.Array, width: int, parts: int, *, name: str) -> list[jax.Array]:
    """That many of [B, 1, width], zeros at first, inside a compact module."""
    return jnp.split(dense(condition, parts * width, name=name, init=ZERO)[:, None], parts, axis=-1)


def layer_norm(x: jax.Array) -> jax.Array:
    """Normalises each token [..., D] in float32, without parameters."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Tokens [B, N, D] normalised, then scaled by 1 + scale and shifted [B, 1, D]; x's dtype."""
    return (layer_norm(x) * (1 + scale) + shift).astype(x.dtype)


def patches(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] as its squares, row by row, [B, H / side * W / side, side * side * C]."""
    b, height, width, channels = x.shape
    x = x.reshape(b, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(b, -1, side * side * channels)


def grid_angles(rows: int, columns: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each patch, times `count` frequencies, each [N, count] radians.

    The frequencies go from 1 down to one ratio above 1/10,000.
    """
    down, right = (grid.reshape(-1, 1) for grid in np.mgrid[:rows, :columns])
    frequencies = MAX_PERIOD ** (-np.arange(count) / count)
    return down * frequencies, right * frequencies


def sincos_positions(rows: int, columns: int, width: int) -> jax.Array:
    """[rows * columns, width] float32: sines and cosines of the column, then of the row."""
    down, right = grid_angles(rows, columns, width // 4)
    waves = [np.sin(right), np.cos(right), np.sin(down), np.cos(down)]
    return jnp.asarray(np.concatenate(waves, axis=1), jnp.float32)


def turned(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs of channels, i and i + D/2 of x [B, N, heads, D], by angles [N, D/2]."""
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
