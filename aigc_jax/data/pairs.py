"""Two domains without pairs, such as horses and zebras, as one split: "trainA+trainB"."""

import dataclasses

import numpy as np

from aigc_jax.data.images import DataError
from aigc_jax.data.sources import Source

MARK = "+"  # joins the names of two splits


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Examples of domain A beside examples of domain B, which belong to each other by chance only.

    Its length is the larger domain's. Raises DataError where the domains' examples differ in shape.
    """

    a: Source
    b: Source

    def __post_init__(self) -> None:
        shapes = [s.fetch(np.zeros(1, int))["x"].shape[1:] for s in (self.a, self.b)]
        if shapes[0] != shapes[1]:
            sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise DataError(f"two domains have examples of one shape, not of {sizes}")

    def __len__(self) -> int:
        return max(self.sizes)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many examples each domain holds."""
        return len(self.a), len(self.b)

    def fetch(self, indices: np.ndarray, others: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """int [B] -> {"x": of A, "other": of B}, both [B, ...] as stored; there are no labels.

        `others` are B's indices. None takes A's own, and the smaller domain then starts again at
        its end: so a pass in order meets example i of A with example i of B.
        """
        others = indices if others is None else others
        size_a, size_b = self.sizes
        return {
            "x": self.a.fetch(indices % size_a)["x"],
            "other": self.b.fetch(others % size_b)["x"],
        }


def parts(split: str) -> tuple[str, ...]:
    """The splits that a name stands for: ("trainA", "trainB"), or itself.

    Raises DataError where they are not one or two.
    """
    names = tuple(split.split(MARK))
    if len(names) > 2 or not all(names):
        raise DataError(f"a split is one name, or two such as trainA{MARK}trainB, not {split!r}")
    return names
