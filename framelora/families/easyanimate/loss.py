"""EasyAnimate's training objective on latents: flow matching, as its own trainer has it (`loss_type flow`).

x_t = (1 - sigma) x + sigma eps, and the transformer predicts eps - x. Sigmas are those of the base's scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from diffusers import EasyAnimateTransformer3DModel
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from framelora.digest import draw_seed
from framelora.families.base import ReadUnit, Window
from framelora.families.easyanimate.codec import load_scheduler
from framelora.families.easyanimate.networks.transformer import linear_layers, load_transformer
from framelora.families.easyanimate.spec import read_spec
from framelora.families.easyanimate.units import (
    ALL_MASKED,
    EMPTY,
    PIXEL_MODES,
    clip_unit,
    is_static,
    mask_bank,
    masked_unit,
)

if TYPE_CHECKING:
    from framelora.schema.easyanimate import EasyAnimate


def load_denoiser(base: Path, dtype: torch.dtype) -> EasyAnimateTransformer3DModel:
    """The network that is trained."""
    return load_transformer(base, dtype)


def lora_targets(denoiser: torch.nn.Module) -> list[str]:
    """The Linear layers that are adapted unless the parameters name others: all of them."""
    return linear_layers(denoiser)


def read_window(window: Window, read: ReadUnit, base: Path, params: EasyAnimate, seed: int) -> dict[str, Tensor]:
    """One training item.

    Args:
        window: the window.
        read: gives its units' tensors.
        base: folder of the base model.
        params: the family's parameters.
        seed: decides whether the mirrored copy is read where there is one (every second time), and on an inpaint base
            which masked video of the bank; and which order of the caption's tags.

    Returns:
        `mean` and `std` `[C, f, h, w]`: posterior of the clip's latents, of a static clip its one frame's repeated;
        `text` and `empty` `[L, D]`: embeddings of its caption and of the empty one; on an inpaint base `masked`
        `[1 + C, f, h, w]`: mask and latents of the masked video. All fp32, not scaled.
    """
    spec = read_spec(base)
    static = is_static(window, "train", params)
    flipped = params.conditioning.flips and draw_flipped(seed)
    latents = read("latents", clip_unit(window, static, flipped))
    item = {name: latents[name] for name in ("mean", "std")}
    if static:
        frames = spec.latent_frames(window.num_frames)
        item = {name: tensor.expand(-1, frames, -1, -1) for name, tensor in item.items()}
    item |= {"text": draw_order(seed, read("text", window.content_id)), "empty": read("text", EMPTY)["embeds"]}
    if spec.inpaint:
        bank = mask_bank(params.conditioning, window.num_frames)
        mode, detail = bank[draw_masked(seed, bank, params).place]
        if params.conditioning.fresh_masks and mode in PIXEL_MODES:
            detail = f"{mode}/{draw_seed(seed, 'easyanimate', 'fresh mask')}"
        item["masked"] = read(*masked_unit(window, static, detail, flipped))["masked"]
    return {name: tensor.float() for name, tensor in item.items()}


def draw_order(seed: int, caption: dict[str, Tensor]) -> Tensor:
    """Embedding of an item's caption `[L, D]`: of all orders of its tags, each as often as the others."""
    orders = [caption["embeds"], *caption.get("orders", [])]
    return orders[draw_seed(seed, "easyanimate", "order") % len(orders)]


def draw_flipped(seed: int) -> bool:
    """Whether an item is the mirrored copy of its window: half of them, by the item's seed."""
    return bool(draw_seed(seed, "easyanimate", "flipped") % 2)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one item."""

    posterior_noise: Tensor  # latent shape
    noise: Tensor  # latent shape
    timestep: Tensor  # in [0, 1): place in the scheduler's list
    drop_caption: bool


@dataclass(frozen=True)
class MaskDraw:
    """What an item of an inpaint base is given."""

    place: int  # of the masked video in the bank
    zeroed: bool  # whether it is given nothing instead


def draw_masked(seed: int, bank: list[tuple[str, str]], params: EasyAnimate) -> MaskDraw:
    """Draw a masked video: a function of the item's seed, without its latents, so that one is read and no other.

    Args:
        seed: the item's seed.
        bank: the masked videos to choose from (`units.mask_bank`).
        params: the family's parameters.
    """
    generator = torch.Generator().manual_seed(draw_seed(seed, "easyanimate", "masked"))
    mode, member, zero = torch.rand(3, generator=generator).tolist()
    modes = [name for name, _ in bank]
    weights = params.conditioning.mask_modes.model_dump()
    chosen = pick(mode, {name: weights[name] for name in sorted(set(modes))})
    places = [place for place, name in enumerate(modes) if name == chosen]
    return MaskDraw(
        places[int(member * len(places))], chosen == ALL_MASKED and zero < params.objective.zeroed_all_masked_prob
    )


def draw(seed: int, shape: torch.Size, params: EasyAnimate) -> Draws:
    """Draw an item's random numbers; all are functions of its seed.

    Args:
        seed: the item's seed.
        shape: its latents' `[C, f, h, w]`.
        params: the family's parameters.
    """
    objective = params.objective
    generator = torch.Generator().manual_seed(draw_seed(seed, "easyanimate"))
    posterior_noise = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if ratio := objective.noise_share_in_frames_ratio:
        for frame in range(1, shape[1]):
            noise[:, frame] = ratio * noise[:, frame - 1] + (1 - ratio) * noise[:, frame]
    timestep = compute_density_for_timestep_sampling(
        objective.weighting_scheme,
        1,
        logit_mean=objective.logit_mean,
        logit_std=objective.logit_std,
        mode_scale=objective.mode_scale,
        generator=generator,
    )[0]
    caption = torch.rand((), generator=generator).item()
    return Draws(posterior_noise, noise, timestep, caption < objective.caption_dropout_prob)


def noise_level(quantile: float, params: EasyAnimate) -> float:
    """A quantile of the noise level's law in training: 1 is noise alone, 0 the clip (sigma before the base's shift)."""
    objective = params.objective
    q = min(max(quantile, 1e-6), 1 - 1e-6)
    if objective.weighting_scheme == "logit_normal":
        return 1.0 - 1.0 / (1.0 + math.exp(-NormalDist(objective.logit_mean, objective.logit_std).inv_cdf(1.0 - q)))
    if objective.weighting_scheme == "mode":  # the place falls as the uniform it is made of rises
        return q + objective.mode_scale * (math.cos(math.pi * q / 2) ** 2 - 1.0 + q)
    return q


def pick(share: float, weights: dict[str, float]) -> str:
    """The name in whose part of the cumulated weights a share in [0, 1) of their sum falls."""
    reached = 0.0
    for name, weight in weights.items():
        reached += weight
        if share * sum(weights.values()) < reached:
            return name
    return list(weights)[-1]


def loss(
    transformer: torch.nn.Module,
    batch: dict[str, Tensor],
    seeds: Sequence[int],
    base: Path,
    params: EasyAnimate,
    levels: Sequence[float] | None = None,
) -> Tensor:
    """The loss of each item of a batch.

    Args:
        transformer: the denoiser, or the same wrapped by peft and accelerate.
        batch: items of `read_window`, stacked: `[B, ...]`.
        seeds: B seeds; all draws of an item are functions of its own seed.
        base: folder of the base model (scaling factor, scheduler).
        params: the family's parameters.
        levels: for validation, B quantiles of the noise level in training; no caption is dropped then.

    Returns:
        `[B]`, on the device of the batch.
    """
    spec, scheduler, objective = read_spec(base), load_scheduler(base), params.objective
    device, shape = batch["mean"].device, batch["mean"].shape[1:]
    draws = [draw(seed, shape, params) for seed in seeds]
    posterior_noise, noise = (
        torch.stack([getattr(item, name) for item in draws]).to(device) for name in ("posterior_noise", "noise")
    )
    steps = len(scheduler.timesteps)
    starts = torch.stack([item.timestep for item in draws])
    if levels is not None:
        starts = torch.tensor([1.0 - noise_level(level, params) for level in levels])
    places = (starts * steps).long().clamp(0, steps - 1)
    sigmas = scheduler.sigmas[places].to(device).view(-1, 1, 1, 1, 1)

    x = (batch["mean"] + batch["std"] * posterior_noise) * spec.scaling_factor
    dropped = torch.tensor([item.drop_caption and levels is None for item in draws], device=device).view(-1, 1, 1)
    conditioning = {}
    if spec.inpaint:
        bank = mask_bank(params.conditioning, (shape[1] - 1) * spec.temporal_ratio + 1)
        zeroed = [draw_masked(seed, bank, params).zeroed for seed in seeds]
        keep = ~torch.tensor(zeroed, device=device).view(-1, 1, 1, 1, 1)
        conditioning["inpaint_latents"] = batch["masked"] * spec.scaling_factor * keep
    prediction = transformer(
        (1 - sigmas) * x + sigmas * noise,
        scheduler.timesteps[places].to(device),
        encoder_hidden_states=torch.where(dropped, batch["empty"], batch["text"]),
        **conditioning,
    ).sample.float()
    target = noise - x

    difference = prediction - target
    difference = difference * (difference.abs() <= objective.largest_difference)
    weighting = compute_loss_weighting_for_sd3(objective.weighting_scheme, sigmas)
    losses = (weighting * difference.square()).mean(dim=(1, 2, 3, 4))
    if (ratio := objective.motion_sub_loss_ratio) and shape[1] > 2:
        motion = (prediction - target).diff(dim=2).square().mean(dim=(1, 2, 3, 4))
        losses = (1 - ratio) * losses + ratio * motion
    return losses
