"""What EasyAnimate caches, and which of it a window needs. Plans only: no network is imported here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framelora.families.base import DTYPE_BYTES, EncodeUnit, Purpose, Window
from framelora.families.easyanimate.spec import Unsupported, check_base, read_spec

if TYPE_CHECKING:
    import pandas as pd

    from framelora.schema.easyanimate import EasyAnimate, EasyAnimateConditioning

# Libraries whose release can change the bytes that encode, train and render make.
PACKAGES = ("torch", "diffusers", "transformers", "tokenizers")
# Kinds of windows that it learns from, those that it can render, and what is rendered beside it without a model.
TRAIN_KINDS = ("window", "image")
KINDS = ("window",)
BASELINES = ("still",)
# Samplers to choose among: the base's own is the only one.
SCHEDULERS = ()

# Text units that are no content's: the empty caption (for dropout), and what guidance leads away from.
EMPTY, NEGATIVE = "", "negative"
ALL_MASKED = "all"
PIXEL_MODES = {"block", "block_in_time", "pixels", "blocks", "ellipse", "circle", "frames"}  # their masks are drawn
RENDER_MODES = {"first_frame": "first_frames", "both_ends": "both_ends"}
# Parts of a unit's detail, which are set off by /: its frames are mirrored, left to right; scaled down to a size.
FLIPPED = "flipped"
SCALED = "scaled="


def check_window(window: Window, base: Path) -> str | None:
    """Why the model can't take a window of this size and length, or None."""
    try:
        spec = read_spec(base)
    except Unsupported as reason:
        return str(reason)
    where = "easyanimate.conditioning.train_sizes: num_frames" if window.scaled else "pair.num_frames"
    if window.width % spec.side or window.height % spec.side:
        return (
            f"frames of {window.width}x{window.height} don't fit: both sides must be multiples of {spec.side}; "
            "correct extract.buckets"
        )
    if (window.num_frames - 1) % spec.temporal_ratio:
        nearest = (window.num_frames - 1) // spec.temporal_ratio * spec.temporal_ratio + 1
        return (
            f"{where} {window.num_frames} is not a multiple of {spec.temporal_ratio} plus 1: "
            f"set it to {nearest} or {nearest + spec.temporal_ratio}"
        )
    try:
        check_base(base)
    except Unsupported as reason:
        return str(reason)
    return None


def check_encode(params: EasyAnimate) -> None:
    """Nothing that it encodes with has to be installed."""


def at_sizes(window: Window, base: Path, params: EasyAnimate) -> list[Window]:
    """A window at every size at which it is trained on; its name tells any that is not its own.

    Raises:
        ValueError: a size has more frames than the window, or sides shorter than the base takes.
    """
    side = read_spec(base).side
    sizes = {}
    for size in params.conditioning.train_sizes:
        num_frames = window.num_frames
        if size.num_frames is not None and window.kind != "image":
            num_frames = size.num_frames
        width, height = (int(length * size.scale) // side * side for length in (window.width, window.height))
        if num_frames > window.num_frames:
            raise ValueError(
                f"conditioning.train_sizes: num_frames {num_frames} is more than a window's {window.num_frames} "
                "(pair.num_frames): lower it, or set it to null"
            )
        if not (width and height):
            raise ValueError(
                f"conditioning.train_sizes: scale {size.scale:g} of {window.width}x{window.height} leaves a side "
                f"shorter than {side} pixels: raise it"
            )
        if (width, height, num_frames) == (window.width, window.height, window.num_frames):
            sizes[window.pair] = window
        else:
            name = f"{window.pair}~{width}x{height}x{num_frames}"
            last = min(window.start_frame + num_frames - 1, window.end_frame)
            sizes[name] = dataclasses.replace(
                window, pair=name, end_frame=last, num_frames=num_frames, width=width, height=height, scaled=True
            )
    return list(sizes.values())


def clip_frames(window: Window, static: bool) -> tuple[int, ...]:
    """Numbers of a window's frames in its shot; of a static clip, only the middle one, which stands for all."""
    if static:
        return ((window.start_frame + window.end_frame) // 2,)
    return tuple(range(window.start_frame, window.end_frame + 1))


def clip_unit(window: Window, static: bool, flipped: bool = False) -> str:
    """Id of the clip that a window is encoded as. The VAE is causal in time, so a clip is encoded as a whole.

    A mirrored clip is a clip of its own: its latents are not the mirrored latents. So is one that is scaled down.
    """
    numbers = clip_frames(window, static)
    return "|".join([f"{window.start_shot}@{numbers[0]:05d}+{len(numbers)}", *made_of_frames(window, flipped)])


def made_of_frames(window: Window, flipped: bool) -> list[str]:
    """What is done to a window's frames before they are encoded: parts of a unit's detail."""
    scaled = [f"{SCALED}{window.width}x{window.height}"] if window.scaled else []
    return [*scaled, FLIPPED] if flipped else scaled


def copies(purpose: Purpose, params: EasyAnimate) -> tuple[bool, ...]:
    """Whether a window is encoded mirrored (True) too: in training, by the parameters."""
    return (False, True) if purpose == "train" and params.conditioning.flips else (False,)


def mask_bank(conditioning: EasyAnimateConditioning, num_frames: int) -> list[tuple[str, str]]:
    """The masked videos that training draws from, as (mode, detail); `all` needs no frames of the window.

    Of a single frame nothing can be kept but parts of it: `all` and the modes that hide pixels, or else `all` alone.

    Raises:
        ValueError: no mode is left for clips of this length.
    """
    bank: list[tuple[str, str]] = []
    for mode in sorted(mode for mode, weight in conditioning.mask_modes.model_dump().items() if weight):
        if mode == ALL_MASKED:
            bank.append((mode, ALL_MASKED))
        elif mode in ("first_frames", "both_ends"):
            counts = conditioning.first_frames if mode == "first_frames" else conditioning.both_ends
            longest = num_frames - 1 if mode == "first_frames" else (num_frames - 1) // 2
            bank += [(mode, f"{mode}/{k}") for k in sorted(set(counts)) if k <= longest]
        else:
            draws = 1 if conditioning.fresh_masks else conditioning.pixel_draws
            bank += [(mode, f"{mode}/{draw}") for draw in range(draws)]
    if not bank and num_frames == 1:
        return [(ALL_MASKED, ALL_MASKED)]
    if not bank:
        raise ValueError(f"conditioning.mask_modes: no mode masks a clip of {num_frames} frames: add `all`, or lower k")
    return bank


def masked_unit(window: Window, static: bool, detail: str, flipped: bool = False) -> tuple[str, str]:
    """Unit `(kind, unit)` of a masked video. All-masked videos of one size are one unit."""
    if detail == ALL_MASKED:
        return "masked", f"{ALL_MASKED}-{window.num_frames}x{window.height}x{window.width}"
    return "masked", f"{clip_unit(window, static, flipped)}|{window.num_frames}|{detail}"


def fresh_unit(unit: str, planned: Mapping[tuple[str, str], EncodeUnit]) -> EncodeUnit:
    """A masked video whose mask no plan lists (`fresh_masks`): the bank's first of that mode, with another number.

    Args:
        unit: its id.
        planned: the units of the plan, by kind and id.
    """
    stem, number = unit.rsplit("/", 1)
    first = planned["masked", f"{stem}/0"]
    count, mode, _, *made = first.detail.split("/")
    return dataclasses.replace(first, unit=unit, detail="/".join([count, mode, number, *made]))


def masked_details(window: Window, purpose: Purpose, base: Path, params: EasyAnimate) -> list[str]:
    """Which masked videos of a window are needed."""
    if not read_spec(base).inpaint:
        return []
    if purpose == "train":
        return [detail for _, detail in mask_bank(params.conditioning, window.num_frames)]
    condition = params.render.condition
    return [] if condition == "none" else [f"{RENDER_MODES[condition]}/1/render"]


def is_static(window: Window, purpose: Purpose, params: EasyAnimate) -> bool:
    """Whether a window is a static clip, of which one frame is encoded: a single image, or by the parameters any one.

    The latter in training only, never in what renders are compared with.
    """
    return window.kind == "image" or (purpose == "train" and params.conditioning.static_clips == "middle_frame")


def units_of(window: Window, purpose: Purpose, base: Path, params: EasyAnimate) -> list[tuple[str, str]]:
    """Units `(kind, unit)` of a window."""
    static = is_static(window, purpose, params)
    units = []
    for flipped in copies(purpose, params):
        units.append(("latents", clip_unit(window, static, flipped)))
        details = masked_details(window, purpose, base, params)
        units += [masked_unit(window, static, detail, flipped) for detail in details]
    units += [("text", window.content_id), ("text", EMPTY if purpose == "train" else NEGATIVE)]
    return list(dict.fromkeys(units))


def plan_units(
    shots: pd.DataFrame,
    windows: Mapping[Purpose, Iterable[Window]],
    captions: Mapping[str, Sequence[str]],
    base: Path,
    params: EasyAnimate,
) -> list[EncodeUnit]:
    """What has to be encoded.

    Args:
        shots: table of `dataset.pairs.SHOTS_SCHEMA`.
        windows: windows, by what they are for.
        captions: texts of each content, as written first, then in other orders, which training draws from; a content
            without has the empty caption.
        base: folder of the base model.
        params: the family's parameters.

    Raises:
        ValueError: clips are to be mirrored and a caption tells left from right, or no mask fits a clip.
    """
    units = {
        EncodeUnit("text", EMPTY),
        EncodeUnit("text", NEGATIVE, text=params.encode.negative_prompt),
    }
    for purpose, window in [(purpose, window) for purpose, some in windows.items() for window in some]:
        static = is_static(window, purpose, params)
        frames = clip_frames(window, static)
        text, *orders = captions.get(window.content_id) or [""]
        others = tuple(order for order in dict.fromkeys(orders) if order != text) if purpose == "train" else ()
        units.add(EncodeUnit("text", window.content_id, text=text, orders=others))
        for flipped in copies(purpose, params):
            if flipped and (side := re.search(r"\b(left|right)\b", text, re.IGNORECASE)):
                raise ValueError(
                    f"conditioning.flips: the caption {text!r} says {side[0]!r}, which is wrong of a mirrored clip: "
                    "set it to false, or write captions without sides"
                )
            clip = clip_unit(window, static, flipped)
            made = made_of_frames(window, flipped)
            units.add(EncodeUnit("latents", clip, window.start_shot, frames, detail="/".join(made)))
            for detail in masked_details(window, purpose, base, params):
                kind, unit = masked_unit(window, static, detail, flipped)
                if detail == ALL_MASKED:
                    size = f"{window.num_frames}x{window.height}x{window.width}"
                    units.add(EncodeUnit(kind, unit, detail=f"{ALL_MASKED}/{size}"))
                else:
                    told = "/".join([str(window.num_frames), detail, *made])
                    units.add(EncodeUnit(kind, unit, window.start_shot, frames, detail=told))
    return sorted(units, key=lambda unit: (unit.shot, unit.kind, unit.unit))


def unit_inputs(unit: EncodeUnit, params: EasyAnimate) -> dict[str, Any]:
    """Parameters that change a unit's bytes."""
    if unit.kind == "text":
        length = [params.encode.max_sequence_length, params.encode.long_captions]
        return {"dtype": params.encode.dtype, "length": length}
    seed = {"mask_seed": params.conditioning.mask_seed} if unit.kind == "masked" else {}
    return {"dtype": params.encode.dtype, **seed}


def unit_bytes(unit: EncodeUnit, frames: tuple[int, int, int], base: Path, params: EasyAnimate) -> int:
    """Bytes of a unit's tensors (`encode.Encoder.encode` says which they are).

    Args:
        unit: the unit.
        frames: how many frames, and their width and height in pixels, in the shot; zeros for a unit without.
        base: folder of the base model; its configurations are read.
        params: the family's parameters.
    """
    spec, size = read_spec(base), DTYPE_BYTES[params.encode.dtype]
    if unit.kind == "text":
        width = json.loads((base / "transformer/config.json").read_text()).get("text_embed_dim", 3584)
        encoder = json.loads((base / "text_encoder/config.json").read_text())
        longest = encoder.get("max_position_embeddings") or params.encode.max_sequence_length
        return int((1 + len(unit.orders)) * min(params.encode.max_sequence_length, longest) * width * size)
    count, *sides = frames
    parts = unit.detail.split("/")
    if parts[0] == ALL_MASKED:
        count, *sides = (int(length) for length in parts[1].split("x"))
    elif unit.kind == "masked":
        count = int(parts[0])  # of a static clip too
    for part in parts:
        if part.startswith(SCALED):
            sides = [int(side) for side in part.removeprefix(SCALED).split("x")]
    places = spec.latent_frames(count) * (sides[0] // spec.spatial_ratio) * (sides[1] // spec.spatial_ratio)
    return (1 + spec.latent_channels if unit.kind == "masked" else 2 * spec.latent_channels) * places * size


def train_inputs(base: Path, params: EasyAnimate, steered: bool) -> dict[str, Any]:
    """Parameters that change what is learned, besides those in the cells' bytes.

    Args:
        base: folder of the base model: only an inpaint base draws masks.
        params: the family's parameters.
        steered: whether a ControlNet takes part; this family has none.
    """
    conditioning, objective = params.conditioning, params.objective
    weights = {mode: weight for mode, weight in conditioning.mask_modes.model_dump().items() if weight}
    inpaint = read_spec(base).inpaint
    masks: dict[str, Any] = {"modes": weights}
    if "first_frames" in weights:
        masks["first_frames"] = sorted(set(conditioning.first_frames))
    if "both_ends" in weights:
        masks["both_ends"] = sorted(set(conditioning.both_ends))
    if weights.keys() & PIXEL_MODES:
        masks["draws"] = "fresh" if conditioning.fresh_masks else conditioning.pixel_draws
    unused = {
        "logit_normal": {"mode_scale"},
        "mode": {"logit_mean", "logit_std"},
    }.get(objective.weighting_scheme, {"logit_mean", "logit_std", "mode_scale"})
    if not (inpaint and ALL_MASKED in weights):
        unused = unused | {"zeroed_all_masked_prob"}
    return {
        "static_clips": conditioning.static_clips,
        "flips": conditioning.flips,
        "masks": masks if inpaint else None,
        "objective": objective.model_dump(exclude=unused),
    }


def render_inputs(params: EasyAnimate, scheduler: None = None) -> list[dict[str, Any]]:
    """Parameters that change a render's bytes."""
    # Where weights lie changes nothing; how they are held does.
    render = params.render.model_dump(exclude={"memory_mode"})
    return [render | {"qfloat8": "qfloat8" in params.render.memory_mode}]


def steering_inputs(params: EasyAnimate) -> dict[str, Any]:
    """Parameters that change renders along tracks: there are none."""
    return {}
