"""Two domains without pairs, such as horses and zebras, as one split: "trainA+trainB"."""

import dataclasses

import numpy as np

from aigc_jax.data.images import DataError
from aigc_jax.data.sources import Source

MARK = "+"  # joins the names of two splits


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images of domain A beside images of domain B, which belong to each other by chance only.

    Its length is the larger domain's. Raises DataError where the domains' images differ in shape.
    """

    a: Source
    b: Source

    def __post_init__(self) -> None:
        shapes = [s.fetch(np.zeros(1, int))["image"].shape[1:] for s in (self.a, self.b)]
        if shapes[0] != shapes[1]:
            sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise DataError(f"two domains have images of one shape, not of {sizes}")

    def __len__(self) -> int:
        return max(self.sizes)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many images each domain holds."""
        return len(self.a), len(self.b)

    def fetch(self, indices: np.ndarray, others: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """int [B] -> {"image": of A, "other": of B}, both uint8 [B, H, W, C]; there are no labels.

        `others` are B's indices. None takes A's own, and the smaller domain then starts again at
        its end: so a pass in order meets image i of A with image i of B.
        """
        others = indices if others is None else others
        size_a, size_b = self.sizes
        return {
            "image": self.a.fetch(indices % size_a)["image"],
            "other": self.b.fetch(others % size_b)["image"],
        }


def parts(split: str) -> tuple[str, ...]:
    """The splits that a name stands for: ("trainA", "trainB"), or itself.

    Raises DataError where they are not one or two.
    """
    names = tuple(split.split(MARK))
    if len(names) > 2 or not all(names):
        raise DataError(f"a split is one name, or two such as trainA{MARK}trainB, not {split!r}")
    return names
