"""Descriptions of data for tests, in one line each."""

from collections.abc import Mapping

from aigc_jax.family import DataSpec, Field


def images(
    shape: tuple[int, ...],
    classes: int = 0,
    sizes: Mapping[str, int] | None = None,
    domains: int = 1,
    names: tuple[str, ...] = (),
) -> DataSpec:
    """Images of one shape, of `classes` labels (0: none) with `names`, in one domain or two."""
    fields = dict.fromkeys(("x", "other")[:domains], Field("image", shape))
    conditions = {"label": Field("label", (), classes, names)} if classes else {}
    return DataSpec(fields, conditions, dict(sizes or {}))


def points(sizes: Mapping[str, int] | None = None) -> DataSpec:
    """Points in the plane."""
    return DataSpec({"x": Field("points", (2,))}, {}, dict(sizes or {}))


# By the last word of a config's name.
OF_CONFIGS = {
    "digits": images((8, 8, 1), 10),
    "mnist": images((28, 28, 1), 10),
    "cifar": images((32, 32, 3), 10),
    "celeba64": images((64, 64, 3)),
    "mixture": points(),
    "maps": images((128, 128, 3), domains=2),
    "horse2zebra": images((256, 256, 3), domains=2),
}
