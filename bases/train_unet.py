"""Train tiny-framer's denoiser on clips of the procedural world and write it to `BASE/unet`, in half precision.

The objective is Stable Video Diffusion's: with v = (eps - sigma x0) / sqrt(sigma^2 + 1), the loss is |F - v|^2, the
time input ln(sigma) / 4. Two sigmas of five follow SVD's law, ln sigma ~ N(0.7, 1.6); the others lie higher, up to 700,
where sampling starts, since only there must the motion be inferred from the two ends.

Clips are encoded once and each gives four windows of five frames (the whole clip at half rate, three at full rate),
forwards and backwards. New clips replace the oldest ones all along.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLTemporalDecoder
from layout import BASE, FRAMES, SEED, build_unet, save_part, without_unused
from loop import Minutes, SaveEvery, Schedule, one_thread, train
from torch import Tensor
from torch.nn import functional
from train_codec import to_signal
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from world import build_textures, photograph_folder, sample_clip

from framelora.families.framer.networks.unet import FramerUNet

CLIP_FRAMES = 9
WINDOWS = ((0, 2), (0, 1), (2, 1), (4, 1))  # first frame and stride of each window of a clip
ENDS = tuple(sorted({start + stride * k for start, stride in WINDOWS for k in (0, FRAMES - 1)}))
FPS, MOTION_BUCKET, NOISE_STRENGTH = 7, 127, 0.02
DROPOUT = 0.1
SIGMA_MAX = 700.0

Item = dict[str, Tensor]


class Encoders:
    """The frozen codec and image encoder of a base folder."""

    def __init__(self, base: Path) -> None:
        self.vae = AutoencoderKLTemporalDecoder.from_pretrained(base / "vae").eval().requires_grad_(False)
        self.clip = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder").eval().requires_grad_(False)
        processor = CLIPImageProcessor.from_pretrained(base / "feature_extractor")
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]

    @torch.no_grad()
    def latents(self, signal: Tensor) -> Tensor:
        """Posterior modes, unscaled: `[F, 3, H, W]` in -1..1 to `[F, C, h, w]`."""
        return self.vae.encode(signal).latent_dist.mode()

    @torch.no_grad()
    def conditions(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """The same after the pixel noise that condition images get."""
        return self.latents(signal + NOISE_STRENGTH * torch.randn(signal.shape, generator=generator))

    @torch.no_grad()
    def embeddings(self, signal: Tensor) -> Tensor:
        """CLIP image embeddings, `[F, 3, H, W]` to `[F, D]`."""
        side = self.clip.config.image_size
        small = functional.interpolate(signal, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return self.clip(((small + 1) / 2 - self.mean) / self.std).image_embeds

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents of one clip, unscaled, `[F, C, h, w]` to pixels `[F, 3, H, W]` in -1..1."""
        return self.vae.decode(latents, num_frames=len(latents)).sample.clamp(-1, 1)

    @property
    def scaling_factor(self) -> float:
        """What multiplies latents so that their standard deviation is 1."""
        return float(self.vae.config.scaling_factor)


def encode_clip(encoders: Encoders, frames: np.ndarray, ends: tuple[int, ...], generator: torch.Generator) -> Item:
    """What training needs of a clip uint8 `[F, H, W, 3]`.

    Returns:
        `x0` `[F, C, h, w]` scaled latents; `condition` `[len(ends), C, h, w]` and `embeds` `[len(ends), D]`.
    """
    signal = to_signal(frames)
    at_ends = signal[list(ends)]
    return {
        "x0": encoders.latents(signal) * encoders.scaling_factor,
        "condition": encoders.conditions(at_ends, generator),
        "embeds": encoders.embeddings(at_ends),
    }


def draw_clip(index: int, textures: list[np.ndarray], encoders: Encoders, seed: int) -> Item:
    """Clip number `index` of the training stream, with motion of 2 to 28 pixels; in half the clips everything moves."""
    rng = np.random.default_rng([seed, index])
    frames = sample_clip(rng, textures, CLIP_FRAMES, (2.0, 28.0), all_move=index % 2 == 1)[0]
    return encode_clip(encoders, frames, ENDS, torch.Generator().manual_seed(seed + index))


def cut_batch(pool: list[Item], size: int, rng: np.random.Generator) -> Item:
    """Random windows of pooled clips: x0 `[B, 5, C, h, w]`, first and last `[B, C, h, w]`, embeds `[B, 2, D]`."""
    parts: dict[str, list[Tensor]] = {"x0": [], "first": [], "last": [], "embeds": []}
    for _ in range(size):
        clip = pool[int(rng.integers(len(pool)))]
        start, stride = WINDOWS[int(rng.integers(len(WINDOWS)))]
        frames = start + stride * np.arange(FRAMES)
        if rng.random() < 0.5:
            frames = frames[::-1]
        first, last = ENDS.index(int(frames[0])), ENDS.index(int(frames[-1]))
        parts["x0"].append(clip["x0"][frames.copy()])
        parts["first"].append(clip["condition"][first])
        parts["last"].append(clip["condition"][last])
        parts["embeds"].append(clip["embeds"][[first, last]])
    return {name: torch.stack(tensors) for name, tensors in parts.items()}


def denoise(unet: FramerUNet, noisy: Tensor, sigma: Tensor, batch: Item, keep: Tensor | None = None) -> Tensor:
    """The network's raw output F for `noisy` = x0 + sigma eps, `[B, F, C, h, w]`, with sigma `[B]`.

    `keep` `[B]` is 0 where the condition (latents of both ends and their embeddings) is dropped.
    """
    count = len(noisy)
    keep = torch.ones(count) if keep is None else keep
    ends = keep[:, None, None, None]
    condition = unet.condition(batch["first"] * ends, batch["last"] * ends, noisy.shape[1])
    ids = torch.tensor([[FPS - 1, MOTION_BUCKET, NOISE_STRENGTH]]).repeat(count, 1)
    scaled = noisy / (sigma.square() + 1).sqrt()[:, None, None, None, None]
    return unet(
        torch.cat([scaled, condition], dim=2),
        0.25 * sigma.log(),
        encoder_hidden_states=batch["embeds"] * keep[:, None, None],
        added_time_ids=ids,
    ).sample.float()


def sample_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels `[count]`: of five, two follow SVD's law, two are uniform in ln sigma over 2..6.55, one is 700."""
    kind = torch.rand(count, generator=generator)
    usual = 0.7 + 1.6 * torch.randn(count, generator=generator)
    high = 2.0 + 4.55 * torch.rand(count, generator=generator)
    log_sigma = torch.where(kind < 0.4, usual, torch.where(kind < 0.8, high, torch.full((count,), math.log(SIGMA_MAX))))
    return log_sigma.exp()


def emphasis(batch: Item, sigma: Tensor) -> Tensor:
    """Weights `[B]` of the clips: where noise hides the clip, calm clips count more, as they do in decibels.

    The weight is a function of the condition and sigma alone, so that the best prediction stays the expected value.
    """
    change = (batch["last"] - batch["first"]).square().mean(dim=(1, 2, 3))
    weight = 2.0 / (0.3 + change)
    return torch.where(sigma > 7.0, weight, torch.ones_like(weight))


def unet_loss(unet: FramerUNet, batch: Item, generator: torch.Generator) -> Tensor:
    """Weighted mean of |F - v|^2 over a batch, with sigmas, noise and dropout from `generator`."""
    x0 = batch["x0"]
    sigma = sample_sigma(len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator)
    wide = sigma[:, None, None, None, None]
    target = (noise - wide * x0) / (wide.square() + 1).sqrt()
    keep = (torch.rand(len(x0), generator=generator) >= DROPOUT).float()
    error = (denoise(unet, x0 + wide * noise, sigma, batch, keep) - target).square().mean(dim=(1, 2, 3, 4))
    return (torch.where(keep > 0, emphasis(batch, sigma), 1.0) * error).mean()


def parameter_groups(unet: FramerUNet) -> list[dict[str, Any]]:
    """Muon for the kernels and matrices inside the blocks, as matrices `[out, in * taps]`, Adam for all else."""
    matrices, others = [], []
    for name, parameter in unet.named_parameters():
        inner = name.startswith(("down_blocks.", "mid_block.", "up_blocks.")) and parameter.dim() > 1
        (matrices if inner else others).append(parameter)
    return [{"params": others, "share": 0.3}, {"params": matrices, "share": 1.0, "matrices": True}]


def main(
    base: Path = BASE,
    steps: int = 3000,
    minutes: Minutes = 0,
    batch_size: int = 4,
    peak: float = 3e-3,
    pool_size: int = 600,
    refresh: Annotated[int, typer.Option(help="steps between new clips")] = 3,
    seed: int = SEED,
    bf16: Annotated[bool, typer.Option(help="autocast the forward pass to bfloat16")] = True,
    save_every: SaveEvery = 200,
) -> None:
    """Train for `steps` steps, or for `minutes` when given (then the run is repeatable only by its step count)."""
    one_thread()
    textures = build_textures(seed, photographs=photograph_folder())
    encoders = Encoders(base)
    unet = build_unet(seed).train()
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed + 2)
    pool = [draw_clip(index, textures, encoders, seed) for index in range(40)]
    drawn = len(pool)

    def loss(step: int, progress: float) -> Tensor:
        nonlocal drawn
        if step % refresh == 0:
            pool.append(draw_clip(drawn, textures, encoders, seed))
            del pool[:-pool_size]
            drawn += 1
        batch = cut_batch(pool, batch_size, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return unet_loss(unet, batch, generator)

    def save(average: FramerUNet) -> None:
        save_part(without_unused(average), base / "unet")

    schedule = Schedule(steps, peak, minutes, save_every, decay=0.998, clip=1.0)
    taken = train(unet, parameter_groups(unet), loss, save, schedule)
    print(f"denoiser: {taken} steps, {drawn} clips", flush=True)


if __name__ == "__main__":
    typer.run(main)
