"""Framer's training objective on latents: EDM with v-prediction, as Stable Video Diffusion was trained.

Formulas: Karras et al. 2022 (arXiv 2206.00364, table 1) with sigma_data = 1 and SVD's c_noise = log(sigma) / 4; the
constants are those of SVD_Xtend's train_svd.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framelora.digest import draw_seed
from framelora.families.base import ReadUnit, Window
from framelora.families.framer.networks.controlnet import SteeredUNet, TrajectoryControlNet, starting_controlnet
from framelora.families.framer.networks.heatmap import heatmaps
from framelora.families.framer.networks.unet import (
    DEFAULT_LORA_TARGETS,
    FramerUNet,
    added_time_ids,
    bare_unet,
    load_unet,
)
from framelora.families.framer.spec import read_spec
from framelora.families.framer.units import end_unit

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


def load_denoiser(base: Path, dtype: torch.dtype) -> FramerUNet:
    """The network that is trained."""
    return load_unet(base, dtype)


def load_controlnet(unet: FramerUNet, base: Path, dtype: torch.dtype, seed: int) -> TrajectoryControlNet:
    """The ControlNet that is trained: the base's own, or a new one with the UNet's encoder (drawn from the seed)."""
    return starting_controlnet(unet, base, dtype, read_spec(base).spatial_ratio, seed)


def lora_targets(denoiser: torch.nn.Module) -> tuple[str, ...]:
    """The Linear layers that are adapted unless the parameters name others."""
    return DEFAULT_LORA_TARGETS


def read_window(window: Window, read: ReadUnit, base: Path, params: Framer, seed: int) -> dict[str, Tensor]:
    """One training item.

    Args:
        window: the window.
        read: gives its units' tensors.
        base: folder of the base model; it counts for other families only.
        params: the family's parameters.
        seed: with `condition_noise: bank`, decides which draw of the bank is read. One for both ends, since the UNet is
            told one strength.

    Returns:
        `mean` and `std` `[F, C, h, w]`: posterior of the frames' latents; `first` and `last` `[C, h, w]`: condition
        latents of the ends, with `condition_noise: latent` clean ones; `image_embeds` `[2, D]`: CLIP embeddings of the
        ends. With `bank` `condition_sigma` `[]`, the strength of the ends' noise. With tracks `tracks` `[F, P, 2]` in
        pixels, and `visible` `[F, P]`. All fp32.
    """
    latents = read("latents", window.start_shot, slice(window.start_frame, window.end_frame + 1))
    units = [end_unit(shot, frame) for shot, frame in window.ends]
    ends = [read("ends", unit) for unit in units]
    item = {**latents, "image_embeds": torch.stack([end["image_embeds"] for end in ends])}
    told = params.conditioning
    if told.condition_noise == "latent":
        item |= {"first": item["mean"][0], "last": item["mean"][-1]}
    elif told.condition_noise == "off":
        item |= {"first": ends[0]["condition_latents"], "last": ends[1]["condition_latents"]}
    else:
        number = int(torch.randint(told.condition_noise_draws, (), generator=condition_generator(seed)))
        first, last = (read("noisy_ends", unit, slice(number, number + 1)) for unit in units)
        item |= {"first": first["condition_latents"][0], "last": last["condition_latents"][0]}
        item["condition_sigma"] = first["sigmas"][0]
    if params.encode.tracks != "none":
        item |= read("tracks", window.pair)
    return {name: tensor.float() for name, tensor in item.items()}


def loss(
    unet: torch.nn.Module,
    batch: dict[str, Tensor],
    seeds: Sequence[int],
    base: Path,
    params: Framer,
    levels: Sequence[float] | None = None,
    controlnet: torch.nn.Module | None = None,
) -> Tensor:
    """The loss of each item of a batch.

    With v = (eps - sigma x0) / sqrt(sigma^2 + 1), the EDM loss (1 + sigma^2) / sigma^2 |x0_hat - x0|^2 with
    c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1) equals |F - v|^2: this form, which is stable in fp32.

    Args:
        unet: the denoiser, or the same wrapped by peft and accelerate.
        batch: items of `read_window`, stacked: `[B, ...]`.
        seeds: B seeds; all draws of an item are functions of its own seed.
        base: folder of the base model (its VAE's scaling factor).
        params: the family's parameters.
        levels: for validation, B quantiles of sigma in training; nothing is dropped then.
        controlnet: the trajectory ControlNet, or the same wrapped; it is shown heatmaps of the batch's tracks.

    Returns:
        `[B]`, on the device of the batch.
    """
    shape = batch["mean"].shape[1:]
    device = batch["mean"].device
    draws = [draw(seed, shape, params) for seed in seeds]
    posterior_noise, noise, sigma, dropout = (torch.stack(parts).to(device) for parts in zip(*draws, strict=True))
    if levels is not None:
        sigma = torch.tensor([noise_level(level, params) for level in levels], device=device)
        dropout = torch.ones_like(dropout)

    x0 = (batch["mean"] + batch["std"] * posterior_noise) * read_spec(base).scaling_factor
    sigma = sigma.view(-1, 1, 1, 1, 1)
    scale = (sigma**2 + 1).sqrt()
    noisy = (x0 + sigma * noise) / scale
    target = (noise - sigma * x0) / scale

    p = params.objective.conditioning_dropout_prob
    keep_clip = (dropout >= 2 * p).float()
    keep_latents = ((dropout < p) | (dropout >= 3 * p)).float().view(-1, 1, 1, 1)
    first, last, strengths = noisy_ends(batch, seeds, params)
    condition = bare_unet(unet).condition(first * keep_latents, last * keep_latents, shape[0])
    told = params.conditioning
    time_ids = added_time_ids(len(seeds), told.fps, told.motion_bucket_id, strengths.cpu())
    extra, network = {}, unet
    if controlnet is not None:
        extra, network = {"hints": hints(batch, seeds, base, params).to(device)}, SteeredUNet(unet, controlnet)
    prediction = network(
        torch.cat([noisy, condition], dim=2),
        0.25 * sigma.flatten().log(),
        encoder_hidden_states=batch["image_embeds"] * keep_clip.view(-1, 1, 1),
        added_time_ids=time_ids.to(device),
        **extra,
    ).sample
    return (prediction.float() - target).square().mean(dim=(1, 2, 3, 4))


def noise_level(quantile: float, params: Framer) -> float:
    """Sigma of a quantile of its law in training (log-normal)."""
    normal = NormalDist(params.objective.sigma_log_mean, params.objective.sigma_log_std)
    return math.exp(normal.inv_cdf(min(max(quantile, 1e-6), 1 - 1e-6)))


def draw(seed: int, shape: torch.Size, params: Framer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The random numbers of one item: posterior noise and noise of a latent shape, sigma, a uniform for dropout."""
    generator = torch.Generator().manual_seed(draw_seed(seed, "framer"))
    posterior_noise = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    log_sigma = params.objective.sigma_log_mean + params.objective.sigma_log_std * torch.randn((), generator=generator)
    return posterior_noise, noise, log_sigma.exp(), torch.rand((), generator=generator)


def noisy_ends(batch: dict[str, Tensor], seeds: Sequence[int], params: Framer) -> tuple[Tensor, Tensor, Tensor]:
    """Condition latents of first and last frame `[B, C, h, w]`, and the strength of their noise `[B]`.

    One strength for both ends of a clip, since the UNet is told one. Those of the bank were drawn by `read_window`.
    """
    first, last, told = batch["first"], batch["last"], params.conditioning
    if told.condition_noise == "off":
        return first, last, torch.full((len(seeds),), told.noise_aug_strength)
    if told.condition_noise == "bank":
        return first, last, batch["condition_sigma"]
    generators = [condition_generator(seed) for seed in seeds]
    normals = torch.stack([torch.randn((), generator=generator) for generator in generators])
    strengths = (told.condition_noise_log_mean + told.condition_noise_log_std * normals).exp()
    noisy = []
    for latents in (first, last):
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        spread = latents.std(dim=(1, 2, 3), keepdim=True) * strengths.view(-1, 1, 1, 1).to(latents.device)
        noisy.append(latents + spread * noise.to(latents.device))
    return noisy[0], noisy[1], strengths


def condition_generator(seed: int) -> torch.Generator:
    """Where an item's condition noise comes from."""
    return torch.Generator().manual_seed(draw_seed(seed, "framer", "condition"))


def hints(batch: dict[str, Tensor], seeds: Sequence[int], base: Path, params: Framer) -> Tensor:
    """Heatmaps `[B, F, 3, H, W]` of some of the tracked points of each clip, chosen by the item's seed.

    Raises:
        ValueError: the batch has no tracks.
    """
    if "tracks" not in batch:
        raise ValueError("a ControlNet trains on tracks: set framer.encode.tracks to lucas_kanade")
    factor = read_spec(base).spatial_ratio
    height, width = (side * factor for side in batch["mean"].shape[-2:])
    pictures = []
    for tracks, visible, seed in zip(batch["tracks"].cpu(), batch["visible"].cpu(), seeds, strict=True):
        shown = visible.bool() & chosen_points(visible.bool(), seed, params)
        pictures.append(heatmaps(tracks, shown, width=width, height=height, side=params.objective.heatmap_side))
    return torch.stack(pictures)


def chosen_points(visible: Tensor, seed: int, params: Framer) -> Tensor:
    """Which points of a clip are shown `[P]`: 1 to `control_points_max` of those found, each dropped by chance.

    Framer's own sampling of points is not published; showing few and varying numbers is what its users will do.
    """
    found = visible[0].nonzero().flatten()
    chosen = torch.zeros(visible.shape[1], dtype=torch.bool)
    if len(found):
        generator = torch.Generator().manual_seed(draw_seed(seed, "framer", "points"))
        most = min(params.objective.control_points_max, len(found))
        count = int(torch.randint(1, most + 1, (), generator=generator))
        points = found[torch.randperm(len(found), generator=generator)[:count]]
        kept = torch.rand(count, generator=generator) >= params.objective.control_point_dropout
        chosen[points[kept]] = True
    return chosen
