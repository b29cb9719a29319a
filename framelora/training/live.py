"""Training without cached latents: windows are encoded in the training process, whenever one is needed.

It costs the encoders' memory and their time in every step. It is here so that what caching saves can be measured, and
so that a test can hold cached training to the same losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from framelora.families.base import ALL_ROWS, EncodeUnit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class LiveReader:
    """Makes what a reader of cells would read: the family's own encoder on the same frames and captions.

    Args:
        units: the units that will be asked for, as `encode` plans them.
        encoder: builds the family's `Encoder`; called at the first read.
        frames: gives the frames of a shot, `[F, H, W, 3]`.
    """

    def __init__(
        self,
        units: Iterable[EncodeUnit],
        encoder: Callable[[], Any],
        frames: Callable[[str], NDArray[np.uint8]],
    ) -> None:
        self.units = {(unit.kind, unit.unit): unit for unit in units}
        self.encoder = functools.cache(encoder)
        self.frames = functools.lru_cache(maxsize=2)(frames)  # the units of a window are read one after the other

    def read(self, kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """Encode some rows of a unit, or all: `families.base.ReadUnit`."""
        planned, encoder = self.units[kind, unit], self.encoder()
        frames = planned.frames_of(self.frames(planned.shot)) if planned.shot else None
        tensors: dict[str, Tensor] = encoder.encode(planned, frames, rows)
        encoder.notes.clear()  # `encode` has told them once
        return tensors
