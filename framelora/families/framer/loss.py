"""Framer's training objective on cached latents: EDM with v-prediction, as Stable Video Diffusion was trained.

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
from framelora.families.framer.codec import vae_scaling_factor
from framelora.families.framer.networks.unet import (
    DEFAULT_LORA_TARGETS,
    FramerUNet,
    added_time_ids,
    bare_unet,
    load_unet,
)
from framelora.families.framer.units import end_unit

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


def load_denoiser(base: Path, dtype: torch.dtype) -> FramerUNet:
    """The network that is trained."""
    return load_unet(base, dtype)


def lora_targets(denoiser: torch.nn.Module) -> tuple[str, ...]:
    """The Linear layers that are adapted unless the parameters name others."""
    return DEFAULT_LORA_TARGETS


def read_window(window: Window, read: ReadUnit, base: Path, params: Framer) -> dict[str, Tensor]:
    """One training item from cached cells.

    Returns:
        `mean` and `std` `[F, C, h, w]`: posterior of the frames' latents; `first` and `last` `[C, h, w]`: condition
        latents of the ends; `image_embeds` `[2, D]`: CLIP embeddings of the ends. All fp32.
    """
    frames = slice(window.start_frame, window.end_frame + 1)
    latents = read("latents", window.start_shot)
    first, last = (read("ends", end_unit(shot, frame)) for shot, frame in window.ends)
    item = {
        "mean": latents["mean"][frames],
        "std": latents["std"][frames],
        "first": first["condition_latents"],
        "last": last["condition_latents"],
        "image_embeds": torch.stack([first["image_embeds"], last["image_embeds"]]),
    }
    return {name: tensor.float() for name, tensor in item.items()}


def loss(
    unet: torch.nn.Module,
    batch: dict[str, Tensor],
    seeds: Sequence[int],
    base: Path,
    params: Framer,
    levels: Sequence[float] | None = None,
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

    x0 = (batch["mean"] + batch["std"] * posterior_noise) * vae_scaling_factor(base)
    sigma = sigma.view(-1, 1, 1, 1, 1)
    scale = (sigma**2 + 1).sqrt()
    noisy = (x0 + sigma * noise) / scale
    target = (noise - sigma * x0) / scale

    p = params.objective.conditioning_dropout_prob
    keep_clip = (dropout >= 2 * p).float()
    keep_latents = ((dropout < p) | (dropout >= 3 * p)).float().view(-1, 1, 1, 1)
    condition = bare_unet(unet).condition(batch["first"] * keep_latents, batch["last"] * keep_latents, shape[0])
    time_ids = added_time_ids(
        len(seeds),
        params.conditioning.fps,
        params.conditioning.motion_bucket_id,
        params.conditioning.noise_aug_strength,
    )
    prediction = unet(
        torch.cat([noisy, condition], dim=2),
        0.25 * sigma.flatten().log(),
        encoder_hidden_states=batch["image_embeds"] * keep_clip.view(-1, 1, 1),
        added_time_ids=time_ids.to(device),
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
