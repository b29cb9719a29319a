"""What Framer caches, and which of it a window needs. Plans only: no network is imported here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from framelora.digest import sha256
from framelora.families.base import DTYPE_BYTES, EncodeUnit, Purpose, Window
from framelora.families.framer.spec import embedding_width, read_spec
from framelora.versions import installed, versions

if TYPE_CHECKING:
    from framelora.schema.framer import Framer

# Libraries whose release can change the bytes that encode, train and render make.
PACKAGES = ("torch", "diffusers", "transformers")
# Kinds of windows that it learns from, those that it can render, and what is rendered beside it without a model.
TRAIN_KINDS = ("window",)
KINDS = ("window", "image_pair")
BASELINES = ("hold_first", "blend", "flow_warp")
# Samplers that `framer.render.scheduler` chooses among.
SCHEDULERS = ("euler", "dpm++", "lcm")


def end_unit(shot: str, frame: int) -> str:
    """Id of an end frame."""
    return f"{shot}@{frame:05d}"


def check_window(window: Window, base: Path) -> str | None:
    """Why the model can't take a window of this size and length, or None: Framer takes every one."""
    return None


def check_encode(params: Framer) -> str | None:
    """Which parameter of `framer.encode` asks for what is not installed, and what to do; None where all is there."""
    if params.encode.tracks != "cotracker":
        return None
    if not installed("cotracker"):
        return "framer.encode.tracks: cotracker needs the package cotracker: install it, or set tracks to lucas_kanade"
    weights = params.encode.cotracker_weights
    if weights is None or not Path(weights).is_file():
        given = "is null" if weights is None else f"{weights} does not exist"
        return f"framer.encode.cotracker_weights: {given}: give the path of CoTracker's scaled_offline.pth"
    return None


def at_sizes(window: Window, base: Path, params: Framer) -> list[Window]:
    """The sizes at which a window is trained on: its own."""
    return [window]


def units_of(window: Window, purpose: Purpose, base: Path, params: Framer) -> list[tuple[str, str]]:
    """Units `(kind, unit)` of a window: both ends, and the shot's latents; an image pair has none between its ends.

    Training may need more: the bank of noisy ends. Tracks of points are made over every window, to train a ControlNet
    and to steer by it what is held out.
    """
    ends = [end_unit(shot, frame) for shot, frame in window.ends]
    units = [("ends", end) for end in ends]
    if window.kind == "window":
        units.append(("latents", window.start_shot))
        if purpose == "train" and params.conditioning.condition_noise == "bank":
            units += [("noisy_ends", end) for end in ends]
        if params.encode.tracks != "none":
            units.append(("tracks", window.pair))
    return units


def plan_units(
    shots: pd.DataFrame,
    windows: Mapping[Purpose, Iterable[Window]],
    captions: Mapping[str, Sequence[str]],
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
        base: the base model's folder; it counts for other families only.
        params: the family's parameters.
    """
    units = {EncodeUnit("latents", shot, shot) for shot in shots.shot[shots.kind.isin(["video", "pseudo"])]}
    for purpose, wanted in windows.items():
        for window in wanted:
            needed = units_of(window, purpose, base, params)
            for kind in {kind for kind, _ in needed} & {"ends", "noisy_ends"}:
                units |= {EncodeUnit(kind, end_unit(shot, frame), shot, (frame,)) for shot, frame in window.ends}
            if ("tracks", window.pair) in needed:
                frames = tuple(range(window.start_frame, window.end_frame + 1))
                units.add(EncodeUnit("tracks", window.pair, window.start_shot, frames))
    return sorted(units, key=lambda unit: (unit.shot, unit.kind, unit.unit))


def unit_inputs(unit: EncodeUnit, params: Framer) -> dict[str, Any]:
    """Parameters and libraries that change a unit's bytes."""
    conditioning, encode = params.conditioning, params.encode
    if unit.kind == "latents":
        return {"vae_batch": encode.vae_batch, "dtype": encode.dtype}
    if unit.kind == "tracks":
        if unit.detail:  # they came with the video
            return {"points": encode.track_points}
        used = {"method": encode.tracks, "points": encode.track_points, **versions("opencv-python-headless")}
        if encode.tracks == "cotracker":
            used |= {
                "weights": sha256(Path(encode.cotracker_weights or "").read_bytes()),
                **versions("cotracker", "torch"),
            }
        return used
    if unit.kind == "noisy_ends":
        law = [conditioning.condition_noise_log_mean, conditioning.condition_noise_log_std]
        draws = [conditioning.condition_noise_draws, conditioning.condition_noise_seed]
        return {"law": law, "draws": draws, "dtype": encode.dtype}
    return {"noise_aug_strength": conditioning.noise_aug_strength, "dtype": encode.dtype}


def unit_bytes(unit: EncodeUnit, frames: tuple[int, int, int], base: Path, params: Framer) -> int:
    """Bytes of a unit's tensors (`encode.Encoder.encode` says which they are).

    Args:
        unit: the unit.
        frames: how many frames, and their width and height in pixels.
        base: folder of the base model; its configurations are read.
        params: the family's parameters.
    """
    spec = read_spec(base)
    count, width, height = frames
    latents = spec.latent_channels * (width // spec.spatial_ratio) * (height // spec.spatial_ratio)
    size = DTYPE_BYTES[params.encode.dtype]
    if unit.kind == "latents":
        return count * 2 * latents * size
    if unit.kind == "tracks":  # two float32 and a byte for each point
        return count * params.encode.track_points * 9
    if unit.kind == "noisy_ends":
        return params.conditioning.condition_noise_draws * (latents + 1) * size
    return (latents + embedding_width(base)) * size


def train_inputs(base: Path, params: Framer, steered: bool) -> dict[str, Any]:
    """Parameters that change what is learned, besides those in the cells' bytes.

    Args:
        base: folder of the base model; it counts for other families only.
        params: the family's parameters.
        steered: whether a ControlNet takes part.
    """
    told, objective = params.conditioning, params.objective
    noise: dict[str, Any] = {
        "bank": {"draws": told.condition_noise_draws},
        "latent": {"law": [told.condition_noise_log_mean, told.condition_noise_log_std]},
        "off": {"strength": told.noise_aug_strength},
    }
    points = {"control_points_max", "control_point_dropout", "heatmap_side"}
    return {
        "told": [told.fps, told.motion_bucket_id],
        "condition_noise": [told.condition_noise, noise[told.condition_noise]],
        "objective": objective.model_dump(exclude=set() if steered else points),
    }


def render_inputs(params: Framer, scheduler: str | None = None) -> list[dict[str, Any]]:
    """Parameters that change a render's bytes: not those of the condition noise in training.

    Args:
        params: the family's parameters.
        scheduler: the sampler, where it is not the parameters'.
    """
    told = params.conditioning.model_dump(include={"fps", "motion_bucket_id", "noise_aug_strength"})
    chosen = params.render.model_dump(exclude={"tracks"})
    return [told, chosen | ({"scheduler": scheduler} if scheduler else {})]


def steering_inputs(params: Framer) -> dict[str, Any]:
    """Parameters that change renders along the windows' own tracks; empty where there are to be none."""
    if params.render.tracks == "none":
        return {}
    return params.objective.model_dump(include={"heatmap_side", "control_points_max"})
