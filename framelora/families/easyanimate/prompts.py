"""Rendering from a person's prompt and pictures, without a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import release_memory
from numpy.typing import NDArray
from torch import Tensor

from framelora.families.base import EncodeUnit
from framelora.families.easyanimate.codec import TextEncoder
from framelora.families.easyanimate.encode import Encoder
from framelora.families.easyanimate.spec import check_base, read_spec

if TYPE_CHECKING:
    from framelora.schema.easyanimate import EasyAnimate


@dataclass(frozen=True)
class Limits:
    """What a base can render."""

    side: int  # both sides are multiples of it, in pixels
    frame_step: int  # frames are multiples of it, plus 1
    takes_images: bool


def limits(base: Path) -> Limits:
    """Read a base's limits. Raises `Unsupported`, also when the base is not whole, or the original release."""
    spec = read_spec(base)
    check_base(base)
    return Limits(spec.side, spec.temporal_ratio, spec.inpaint)


def prepare(
    base: Path,
    params: EasyAnimate,
    device: torch.device,
    *,
    prompt: str,
    negative: str,
    ends: list[NDArray[np.uint8]],
    size: tuple[int, int, int],
) -> dict[str, Tensor | None]:
    """Encode what `Renderer.sample_clip` is given.

    The text encoder is gone from the device before the VAE comes, and both are gone afterwards, in every memory mode;
    under `sequential_cpu_offload` the text encoder is on it layer by layer.

    Args:
        base, params, device: as everywhere.
        prompt: what the clip shows.
        negative: what guidance leads away from.
        ends: no picture, the first frame, or the first and the last, each `[H, W, 3]`.
        size: frames, height, width of the clip.

    Raises:
        ValueError: a text is too long for the encoder; `long_captions: truncate` is for captions of data sets.
    """
    whole = params.encode.model_copy(update={"long_captions": "stop"})
    encoder = Encoder(base, params.model_copy(update={"encode": whole}), device)
    layer_by_layer = params.render.memory_mode == "sequential_cpu_offload" and device.type != "cpu"
    encoder.text_encoder = TextEncoder(base, whole.max_sequence_length, device, layer_by_layer=layer_by_layer)
    texts = {}
    for name, called, text in (("text", "prompt", prompt), ("negative", "negative prompt", negative)):
        try:
            texts[name] = encoder.encode(EncodeUnit("text", name, text=text), None)["embeds"].float()
        except ValueError as error:
            raise ValueError(f"the {called}: {error}") from None
    del encoder.text_encoder
    release_memory()
    inputs: dict[str, Tensor | None] = {**texts, "masked": None}
    if not ends:
        return inputs
    clip = np.repeat(ends[0][None], size[0], axis=0)  # what stands between is hidden
    clip[-1] = ends[-1]
    mode = "first_frames" if len(ends) == 1 else "both_ends"
    unit = EncodeUnit("masked", "prompt", detail=f"{size[0]}/{mode}/1/render")
    inputs["masked"] = encoder.encode(unit, clip)["masked"].float()
    del encoder.vae
    release_memory()
    return inputs
