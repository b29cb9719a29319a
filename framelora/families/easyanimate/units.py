"""What EasyAnimate caches, and which of it a window needs. Plans only: no network is imported here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framelora.families.base import EncodeUnit, Purpose, Window

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
RENDER_MODES = {"first_frame": "first_frames", "both_ends": "both_ends"}
FLIPPED = "flipped"  # at the end of a unit's detail: its frames are mirrored, left to right


class Unsupported(ValueError):
    """A base model that this family can't run; the text says which and why."""


@dataclass(frozen=True)
class BaseSpec:
    """What the configurations of a base model say.

    Attributes:
        latent_channels: C of the VAE.
        scaling_factor: what its latents are multiplied by for the transformer.
        spatial_ratio: pixels a latent, in each direction.
        temporal_ratio: frames a latent, after the first.
        patch: latents a side of the transformer's patches.
        inpaint: whether the transformer takes masked-video latents and a mask (-InP).
        condition_noise: whether the masked video of an inpaint model gets noise.
    """

    latent_channels: int
    scaling_factor: float
    spatial_ratio: int
    temporal_ratio: int
    patch: int
    inpaint: bool
    condition_noise: bool

    @property
    def side(self) -> int:
        """Both sides of a frame are multiples of it, in pixels: 16 for the published models."""
        return self.patch * self.spatial_ratio

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of 4n + 1 frames (with the usual ratio)."""
        return (num_frames - 1) // self.temporal_ratio + 1


def read_spec(base: Path) -> BaseSpec:
    """Read and check a base model's configurations (defaults are those of diffusers' classes).

    Raises:
        Unsupported: two text encoders (V5), blocks that diffusers computes otherwise than the original, a control
            model, or a mask that goes through the VAE.
        FileNotFoundError: `vae/config.json` or `transformer/config.json` is missing.
    """
    vae = json.loads((base / "vae/config.json").read_text())
    transformer = json.loads((base / "transformer/config.json").read_text())
    if transformer.get("text_embed_dim_t5") is not None or (base / "text_encoder_2").is_dir():
        raise Unsupported("EasyAnimate V5 has two text encoders (BERT and T5): use V5.1, which has one (Qwen2-VL)")
    layers, mmdit_layers = transformer.get("num_layers", 48), transformer.get("mmdit_layers", 48)
    if mmdit_layers < layers:
        raise Unsupported(
            f"mmdit_layers {mmdit_layers} is below num_layers {layers}: diffusers leaves out a projection of the text "
            "in such blocks, so its outputs differ from EasyAnimate's by a few per cent"
        )
    channels = vae.get("latent_channels", 16)
    in_channels = transformer["in_channels"]
    if in_channels not in (channels, 2 * channels + 1):
        raise Unsupported(
            f"the transformer takes {in_channels} channels: only text to video ({channels}) and V5.1 inpaint models "
            f"({2 * channels + 1}) can be trained"
        )
    inpaint = in_channels != channels
    if inpaint and not transformer.get("resize_inpaint_mask_directly", True):
        raise Unsupported("this inpaint model passes its mask through the VAE (before V5.1): use a V5.1 model")
    blocks = len(vae.get("block_out_channels", (128, 256, 512, 512)))
    return BaseSpec(
        latent_channels=channels,
        scaling_factor=float(vae.get("scaling_factor", 0.7125)),
        spatial_ratio=2 ** (blocks - 1),
        temporal_ratio=2 ** (blocks - 2),
        patch=transformer.get("patch_size") or 2,
        inpaint=inpaint,
        condition_noise=inpaint and transformer.get("add_noise_in_inpaint_model", True),
    )


def check_window(window: Window, base: Path) -> str | None:
    """Why the model can't take a window of this size and length, or None."""
    try:
        spec = read_spec(base)
    except Unsupported as reason:
        return str(reason)
    except FileNotFoundError as error:
        return f"{base} is no EasyAnimate base: {error.filename} is missing (vae/, transformer/, text_encoder/, ...)"
    if window.width % spec.side or window.height % spec.side:
        return (
            f"frames of {window.width}x{window.height} don't fit: both sides must be multiples of {spec.side}; "
            "correct extract.buckets"
        )
    if (window.num_frames - 1) % spec.temporal_ratio:
        nearest = (window.num_frames - 1) // spec.temporal_ratio * spec.temporal_ratio + 1
        return (
            f"pair.num_frames {window.num_frames} is not a multiple of {spec.temporal_ratio} plus 1: "
            f"set it to {nearest} or {nearest + spec.temporal_ratio}"
        )
    return None


def check_encode(params: EasyAnimate) -> None:
    """Nothing that it encodes with has to be installed."""


def clip_frames(window: Window, static: bool) -> tuple[int, ...]:
    """Numbers of a window's frames in its shot; of a static clip, only the middle one, which stands for all."""
    if static:
        return ((window.start_frame + window.end_frame) // 2,)
    return tuple(range(window.start_frame, window.end_frame + 1))


def clip_unit(window: Window, static: bool, flipped: bool = False) -> str:
    """Id of the clip that a window is encoded as. The VAE is causal in time, so a clip is encoded as a whole.

    A mirrored clip is a clip of its own: its latents are not the mirrored latents.
    """
    numbers = clip_frames(window, static)
    return f"{window.start_shot}@{numbers[0]:05d}+{len(numbers)}{'|' + FLIPPED if flipped else ''}"


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
            bank += [(mode, f"{mode}/{draw}") for draw in range(conditioning.pixel_draws)]
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
    captions: Mapping[str, str],
    base: Path,
    params: EasyAnimate,
) -> list[EncodeUnit]:
    """What has to be encoded.

    Args:
        shots: table of `dataset.pairs.SHOTS_SCHEMA`.
        windows: windows, by what they are for.
        captions: text of each content; a content without has the empty caption.
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
        text = captions.get(window.content_id, "")
        units.add(EncodeUnit("text", window.content_id, text=text))
        for flipped in copies(purpose, params):
            if flipped and (side := re.search(r"\b(left|right)\b", text, re.IGNORECASE)):
                raise ValueError(
                    f"conditioning.flips: the caption {text!r} says {side[0]!r}, which is wrong of a mirrored clip: "
                    "set it to false, or write captions without sides"
                )
            clip = clip_unit(window, static, flipped)
            units.add(EncodeUnit("latents", clip, window.start_shot, frames, detail=FLIPPED if flipped else ""))
            for detail in masked_details(window, purpose, base, params):
                kind, unit = masked_unit(window, static, detail, flipped)
                if detail == ALL_MASKED:
                    size = f"{window.num_frames}x{window.height}x{window.width}"
                    units.add(EncodeUnit(kind, unit, detail=f"{ALL_MASKED}/{size}"))
                else:
                    told = f"{window.num_frames}/{detail}{'/' + FLIPPED if flipped else ''}"
                    units.add(EncodeUnit(kind, unit, window.start_shot, frames, detail=told))
    return sorted(units, key=lambda unit: (unit.shot, unit.kind, unit.unit))


def unit_inputs(unit: EncodeUnit, params: EasyAnimate) -> dict[str, Any]:
    """Parameters that change a unit's bytes."""
    if unit.kind == "text":
        length = [params.encode.max_sequence_length, params.encode.long_captions]
        return {"dtype": params.encode.dtype, "length": length}
    return {"dtype": params.encode.dtype}


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
    if weights.keys() - {ALL_MASKED, "first_frames", "both_ends"}:
        masks["draws"] = conditioning.pixel_draws
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
    told = params.conditioning.model_dump(exclude={"flips"})
    return [told, render | {"qfloat8": "qfloat8" in params.render.memory_mode}]


def steering_inputs(params: EasyAnimate) -> dict[str, Any]:
    """Parameters that change renders along tracks: there are none."""
    return {}
