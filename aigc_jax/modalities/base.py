"""What depends on the kind of data: its range, augmentation, pictures and files."""

from collections.abc import Callable
from typing import NamedTuple


class Modality(NamedTuple):
    """One kind of data, as a tuple of functions.

    Shapes: B examples in a batch, n samples. "As stored" is what a source gives and what files
    hold; "the model's range" is what losses see and what samplers give.

    Attributes:
      kind: its name, as in `family.Field`.
      bounded: whether x lies in [-1, 1] in the model.
      judged_in_features: whether metrics in the space of a feature network apply to it.
      to_model: x as stored [B, ...], NumPy's or JAX's -> float32 in the model's range.
      to_stored: samples in the model's range [n, ...] -> NumPy array as stored.
      clip: samples [n, ...] of JAX -> the nearest ones within the model's range.
      augment: (key, x [B, ...] in the model's range, **settings of `config.augment`) -> x. Each
        example is augmented by itself. Raises ValueError where a setting makes no sense.
      picture: (samples [n, ...] in the model's range, *, real, columns) -> PIL image of all of
        them. `real` are real examples [m, ...] to compare with, or None; `columns` is the number of
        samples in a row, 0 to leave it open. Either has no effect where a picture cannot use it.
      save: (samples as stored [n, ...], folder) writes each to a file of its own, named by its
        number; None where one sample makes no file.
    """

    kind: str
    bounded: bool
    judged_in_features: bool
    to_model: Callable
    to_stored: Callable
    clip: Callable
    augment: Callable
    picture: Callable
    save: Callable | None
