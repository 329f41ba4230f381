"""Published peaks of accelerators, a chip each: arithmetic, memory, links."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Published peaks of one chip; a TPU chip of two cores may be one device to JAX, or two.

    Attributes:
      name: of the product.
      flops: dense matrix products in bfloat16, FLOP/s.
      memory: HBM, bytes.
      bandwidth: of HBM, bytes/s.
      link: of one link to another chip, one way, bytes/s.
      axes: of the torus; a chip has two links an axis. 0 where a switch joins all chips, and `link`
        is all that a chip sends.
      kinds: what JAX calls such a device (`device_kind`), its beginning.
      source: where these numbers stand.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    kinds: tuple[str, ...]
    source: str


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_ICI = "; a link is the bidirectional ICI bandwidth of a chip over 2 ways and its ports"
# NVIDIA's data sheets give matrix products with sparsity, which is twice as much.
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
CHIPS = {
    # Google states no link of v4: 1.1 PB/s of all-reduce a pod, over 4,096 chips and 6 links.
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 45e9, 3, ("TPU v4",), _TPU + "v4"),
    "v5e": Chip(
        "TPU v5e", 197e12, 16 * GIB, 819e9, 50e9, 2, ("TPU v5 lite", "TPU v5e"), _TPU + "v5e" + _ICI
    ),
    "v5p": Chip(
        "TPU v5p", 459e12, 95 * GIB, 2765e9, 100e9, 3, ("TPU v5p", "TPU v5"), _TPU + "v5p" + _ICI
    ),
    "v6e": Chip(
        "TPU v6e", 918e12, 32 * GIB, 1638e9, 100e9, 2, ("TPU v6 lite", "TPU v6e"),
        _TPU + "v6e" + _ICI,
    ),
    "tpu7x": Chip(
        "TPU7x", 2307e12, 192 * GIB, 7380e9, 100e9, 3, ("TPU7x",), _TPU + "tpu7x" + _ICI
    ),
    "h100": Chip(
        "H100 SXM", 989.5e12, 80e9, 3.35e12, 450e9, 0, ("NVIDIA H100 80GB HBM3",), _NVIDIA + "h100"
    ),
    "h200": Chip("H200 SXM", 989.5e12, 141e9, 4.8e12, 450e9, 0, ("NVIDIA H200",), _NVIDIA + "h200"),
}  # fmt: skip


def of_kind(kind: str) -> Chip | None:
    """The peaks of a device by what JAX calls it; None of one whose peaks are not known."""
    # The longest name first: "TPU v5 lite" is another chip than "TPU v5".
    named = [(name, chip) for chip in CHIPS.values() for name in chip.kinds]
    for name, chip in sorted(named, key=lambda pair: -len(pair[0])):
        if kind.startswith(name):
            return chip
    return None
