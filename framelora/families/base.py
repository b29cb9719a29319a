"""The seam between the pipeline and a model family.

A family is a folder of `framelora/families/` whose modules are reached by name through `source.load_part`, so that an
edit reruns only the stages that use the part:

* `units.py`: `plan_units` says what has to be encoded for a set of shots and pairs, `unit_inputs` what else changes its
  bytes, `units_of` which units a window needs; `PACKAGES` the libraries that count. Imports no network.
* `codec.py`: loads what turns frames and text into latents and embeddings, and latents into frames.
* `encode.py`: `Encoder.encode` computes a unit. The only part that builds encoders.
* `networks/`: the denoiser and what else is trained or steers it, in files of the family's choice.
* `loss.py`: `read_window` puts one training item together from cached cells, `loss` is the objective on a batch.
* `render.py`: `Renderer` makes frames with a denoiser, and through the VAE alone (the ceiling of any score).

These names are the same in every family, since dvc.yaml lists them by template: `families/${model.family}/loss.py`.

Training, caching, rendering and scoring are written once, against these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Gives the cached tensors of a unit: (kind, unit) -> tensors by name.
ReadUnit = Callable[[str, str], "dict[str, Tensor]"]


@dataclass(frozen=True)
class EncodeUnit:
    """One thing to encode: some frames of one shot.

    Attributes:
        kind: what is made of it, for example `latents`; the cell's kind is `encode/` and this.
        unit: id that a reader asks for.
        shot: id of the shot whose frames it needs.
        frames: numbers of these frames in the shot; None for all.
    """

    kind: str
    unit: str
    shot: str
    frames: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Window:
    """A row of the pairs table: a clip of `num_frames` between two end frames, with middles or (image pair) without."""

    pair: str
    kind: str  # "window" or "image_pair"
    start_shot: str
    start_frame: int
    end_shot: str
    end_frame: int
    num_frames: int
    width: int  # pixels
    height: int  # pixels

    @property
    def ends(self) -> list[tuple[str, int]]:
        """Shot and frame number of the first and of the last frame."""
        return [(self.start_shot, self.start_frame), (self.end_shot, self.end_frame)]
