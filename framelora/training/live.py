"""Training without cached latents: windows are encoded in the training process, whenever one is needed.

It costs the encoders' memory and their time in every step. It is here so that what caching saves can be measured, and
so that a test can hold cached training to the same losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
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
        fresh: makes a unit that is asked for and not planned (the family's `fresh_unit`), where there are such.
    """

    def __init__(
        self,
        units: Iterable[EncodeUnit],
        encoder: Callable[[], Any],
        frames: Callable[[str], NDArray[np.uint8]],
        fresh: Callable[[str, Mapping[tuple[str, str], EncodeUnit]], EncodeUnit] | None = None,
    ) -> None:
        self.units = {(unit.kind, unit.unit): unit for unit in units}
        self.fresh = fresh
        self.encoder = functools.cache(encoder)
        self.frames = functools.lru_cache(maxsize=2)(frames)  # the units of a window are read one after the other

    def read(self, kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """Encode some rows of a unit, or all: `families.base.ReadUnit`."""
        planned = self.units.get((kind, unit))
        if planned is None:
            assert self.fresh is not None, f"{kind} of {unit} is not planned"
            planned = self.fresh(unit, self.units)
        encoder = self.encoder()
        frames = planned.frames_of(self.frames(planned.shot)) if planned.shot else None
        tensors: dict[str, Tensor] = encoder.encode(planned, frames, rows)
        encoder.notes.clear()  # `encode` has told them once
        return tensors
