"""The seam between the pipeline and a model family.

A family is a folder of `framelora/families/` whose modules are reached by name through `source.load_part`, so that an
edit reruns only the stages that use the part:

* `units.py`: `plan_units` says what has to be encoded for shots, windows and captions, `unit_inputs` what else changes
  its bytes, `unit_bytes` how many these are, `units_of` which units a window needs, `at_sizes` at which sizes it is
  trained on, `train_inputs` and `render_inputs` which parameters change what is
  learned and what is rendered, besides the units' own; `steering_inputs` those that change a render along the window's
  tracks (empty: none is made); `check_window` refuses what the model can't take, and `check_encode` parameters that ask
  for what is not installed; `TRAIN_KINDS` are the kinds of windows it learns from, `KINDS` those it can render,
  `BASELINES` what is rendered beside it without a model, `SCHEDULERS` its samplers where there is a choice, `PACKAGES`
  the libraries that count. A family whose items ask for units that no plan lists (live training only) adds
  `fresh_unit`, which makes one of those that are planned. Imports no network.
* `spec.py`: what the configurations of a base say.
* `codec.py`: loads what turns frames and text into latents and embeddings, and latents into frames.
* `encode.py`: `Encoder.encode` computes a unit, or some rows of it, and notes in `Encoder.notes` what a person should
  know of it. The only part that builds encoders.
* `networks/`: the denoiser and what else is trained or steers it, in files of the family's choice.
* `loss.py`: `load_denoiser(base, dtype)` and `lora_targets(network)` say what is trained; `read_window` puts one item
  together from the units that its seed draws, and does not know whether they were cached or are made on the spot;
  `loss(denoiser, batch, seeds, base, params, levels)` is the objective, `[B]`. Each item's draws are functions of its
  seed. `levels` (validation) are quantiles of the training noise levels, 0 the least noise, for which nothing of the
  conditions is dropped; `noise_level(quantile, params)` is one in the family's own unit.
  A family that has a ControlNet adds `load_controlnet(denoiser, base, dtype, seed)`; `loss` takes it as `controlnet=`.
* `render.py`: `Renderer` makes frames with a denoiser, and through the VAE alone (the ceiling of any score; of any
  frames, `frames_through_vae`, where the blend of two ends is a baseline), and notes in `Renderer.notes` what a person
  should know.
* `footprint.py`: `example_batch` has the shapes of `read_window`'s items, `write_published` the configurations of the
  published base: what estimates of memory need.
* `keys.py`: how its layers are called in adapter files, and `empty_denoiser`, their shapes without a weight.
* `pipeline.py`, where there is one: `Pipeline`, which makes a clip between two images (`framelora interpolate`).

These names are the same in every family, since dvc.yaml lists them by template: `families/${model.family}/loss.py`.

Training, caching, rendering and scoring are written once, against these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ALL_ROWS = slice(None)
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class ReadUnit(Protocol):
    """Gives the tensors of a unit by name: cached ones, or made on the spot."""

    def __call__(self, kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """
        Args:
            kind, unit: of an `EncodeUnit`.
            rows: which rows of every tensor, for kinds whose rows don't depend on each other (frames, draws).
        """
        ...


# What a window's units are for: training and its validation loss, or renders and their truth.
Purpose = Literal["train", "render"]


@dataclass(frozen=True)
class EncodeUnit:
    """One thing to encode: some frames of one shot, or something that needs no frames, such as a caption.

    Attributes:
        kind: what is made of it, for example `latents`; the cell's kind is `encode/` and this.
        unit: id that a reader asks for.
        shot: id of the shot whose frames it needs; empty where it needs none.
        frames: numbers of these frames in the shot; None for all.
        text: the caption that is encoded.
        orders: the same caption with its tags in other orders, which training draws from.
        detail: what else is to be known to make it, in the family's words; part of the cell's key.
    """

    kind: str
    unit: str
    shot: str = ""
    frames: tuple[int, ...] | None = None
    text: str = ""
    orders: tuple[str, ...] = ()
    detail: str = ""

    def frames_of(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The unit's frames among those of its shot, `[F, H, W, 3]`."""
        return frames if self.frames is None else frames[list(self.frames)]


@dataclass(frozen=True)
class Window:
    """A row of the pairs table: a clip of `num_frames` between two end frames, with middles or (image pair) without."""

    pair: str
    content_id: str  # of the source; captions go by it
    kind: str  # "window" or "image_pair"
    start_shot: str
    start_frame: int
    end_shot: str
    end_frame: int
    num_frames: int
    width: int  # pixels
    height: int  # pixels
    scaled: bool = False  # whether the shot's frames are scaled down to this size

    @property
    def ends(self) -> list[tuple[str, int]]:
        """Shot and frame number of the first and of the last frame."""
        return [(self.start_shot, self.start_frame), (self.end_shot, self.end_frame)]
