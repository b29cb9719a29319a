"""What Framer caches, and which of it a window needs. Plans only: no network is imported here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from framelora.families.base import EncodeUnit, Purpose, Window

if TYPE_CHECKING:
    from framelora.schema.framer import Framer

# Libraries whose release can change the bytes that encode, train and render make.
PACKAGES = ("torch", "diffusers", "transformers")
# Kinds of windows that the model can render, and what is rendered beside it without a model.
KINDS = ("window", "image_pair")
BASELINES = ("hold_first", "blend", "flow_warp")


def end_unit(shot: str, frame: int) -> str:
    """Id of an end frame."""
    return f"{shot}@{frame:05d}"


def check_window(window: Window, base: Path) -> str | None:
    """Why the model can't take a window of this size and length, or None: Framer takes every one."""
    return None


def units_of(window: Window, purpose: Purpose, base: Path, params: Framer) -> list[tuple[str, str]]:
    """Units `(kind, unit)` of a window: both ends, and the shot's latents; an image pair has none between its ends."""
    units = [("ends", end_unit(shot, frame)) for shot, frame in window.ends]
    if window.kind == "window":
        units.append(("latents", window.start_shot))
    return units


def plan_units(
    shots: pd.DataFrame,
    windows: Mapping[Purpose, Iterable[Window]],
    captions: Mapping[str, str],
    base: Path,
    params: Framer,
) -> list[EncodeUnit]:
    """What has to be encoded.

    SVD's VAE sees one frame at a time, so the clean latents are cached for a whole shot and windows are cut from them
    in training: another stride, length or split encodes nothing anew. Only frames that are ends need more.

    Args:
        shots: table of `dataset.pairs.SHOTS_SCHEMA`.
        windows: windows and image pairs, by what they are for.
        captions: text of each content; Framer takes no text.
        base, params: the base model's folder and the family's parameters; both count for other families only.
    """
    units = {EncodeUnit("latents", shot, shot) for shot in shots.shot[shots.kind == "video"]}
    for window in itertools.chain(*windows.values()):
        for shot, frame in window.ends:
            units.add(EncodeUnit("ends", end_unit(shot, frame), shot, (frame,)))
    return sorted(units, key=lambda unit: (unit.shot, unit.kind, unit.unit))


def unit_inputs(unit: EncodeUnit, params: Framer) -> dict[str, Any]:
    """Parameters that change a unit's bytes."""
    if unit.kind == "latents":
        return {"vae_batch": params.encode.vae_batch, "dtype": params.encode.dtype}
    return {"noise_aug_strength": params.conditioning.noise_aug_strength, "dtype": params.encode.dtype}
