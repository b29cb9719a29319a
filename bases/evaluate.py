"""Measure a base: the codec's ceiling and the denoiser's interpolation, against baselines, on clips it never saw.

Rows are peak signal-to-noise ratios in decibels over the middle frames, by clip; intervals are 95 % percentile
bootstraps over clips.

* codec: truth through the codec, all frames of a clip.
* blend: linear blend of the two end frames. blend via codec: that blend, encoded and decoded.
* hold first: the first frame repeated.
* expected, one step: the network's estimate of the clean latents at sigma 700, decoded.
* expected, mean of N: the mean of the latents of N samples, decoded.
* single sample: the mean over samples of each sample's own values.

Beside PSNR: structural similarity (higher is better) and ST-LPIPS, a perceptual distance (lower is better).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from diffusers import EulerDiscreteScheduler
from layout import BASE, FRAMES, HEIGHT, SEED, WIDTH
from torch import Tensor
from train_codec import to_signal
from train_unet import Encoders, Item, denoise, encode_clip
from world import build_textures, sample_clip

from framelora.evaluation.perceptual import load_network
from framelora.families.framer.networks.unet import FramerUNet

HELD_OUT_SEED = 1_000_003  # textures and scenes of the evaluation share no draw with those of the training


def psnr(a: Tensor, b: Tensor) -> float:
    """Of two signals in -1..1, over all their elements."""
    return float(-10 * torch.log10(((a - b) / 2).square().mean().clamp_min(1e-10)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of two clips `[F, 3, H, W]` in -1..1: Gaussian window, sigma 1.5, per channel."""
    axis = torch.arange(11) - 5.0
    line = torch.exp(-axis.square() / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def mean(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x.flatten(0, 1)[:, None], window)

    a, b = (a + 1) / 2, (b + 1) / 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


@torch.no_grad()
def st_lpips(a: Tensor, b: Tensor) -> float:
    """Mean perceptual distance of two clips `[F, 3, H, W]` in -1..1, see `framelora.evaluation.perceptual`."""
    return float(load_network("cpu")(a, b).mean())


MEASURES = {"": psnr, " (ssim)": ssim, " (st_lpips)": st_lpips}


def procedural_clips(count: int, displacement: tuple[float, float]) -> list[np.ndarray]:
    """Held-out clips of five frames: new scenes, in which camera and sprites all move, new textures, no photographs."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    textures = build_textures(HELD_OUT_SEED)
    return [sample_clip(rng, textures, FRAMES, displacement, all_move=True)[0] for _ in range(count)]


def file_clips(path: Path, count: int, stride: int) -> list[np.ndarray]:
    """Clips of five frames spread over a video file, cropped to 3:2 and shrunk by area, `[5, 64, 96, 3]` each."""
    reader = cv2.VideoCapture(str(path))
    frames = []
    while True:
        more, image = reader.read()
        if not more:
            break
        height, width = image.shape[:2]
        w, h = min(width, height * WIDTH // HEIGHT), min(height, width * HEIGHT // WIDTH)
        image = image[(height - h) // 2 : (height + h) // 2, (width - w) // 2 : (width + w) // 2]
        frames.append(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., ::-1])
    if len(frames) <= stride * (FRAMES - 1):
        raise typer.BadParameter(f"{path} has only {len(frames)} readable frames")
    starts = np.linspace(0, len(frames) - 1 - stride * (FRAMES - 1), count).astype(int)
    return [np.stack(frames[s : s + stride * (FRAMES - 1) + 1 : stride]) for s in starts]


def prepare(encoders: Encoders, clip: np.ndarray, seed: int) -> Item:
    """A batch of one: first and last `[1, C, h, w]`, embeds `[1, 2, D]`, x0 `[1, F, C, h, w]`."""
    item = encode_clip(encoders, clip, (0, FRAMES - 1), torch.Generator().manual_seed(seed))
    first, last = item["condition"]
    return {"x0": item["x0"][None], "first": first[None], "last": last[None], "embeds": item["embeds"][None]}


@torch.no_grad()
def one_step(unet: FramerUNet, batch: Item, seed: int, sigma: float = 700.0) -> Tensor:
    """The network's estimate of the clean latents from pure noise, scaled, `[B, F, C, h, w]`."""
    noise = torch.randn(batch["x0"].shape, generator=torch.Generator().manual_seed(seed))
    level = torch.full((len(noise),), sigma)
    output = denoise(unet, noise * (sigma**2 + 1) ** 0.5, level, batch)
    return noise / (sigma**2 + 1) ** 0.5 - output * sigma / (sigma**2 + 1) ** 0.5


@torch.no_grad()
def sample(unet: FramerUNet, scheduler: EulerDiscreteScheduler, batch: Item, seeds: list[int], steps: int) -> Tensor:
    """Samples of one item without guidance, one for each seed, scaled latents `[len(seeds), F, C, h, w]`."""
    shape = batch["x0"].shape[1:]
    scheduler.set_timesteps(steps)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    latents = noise * scheduler.init_noise_sigma
    wide = {name: tensor.expand(len(seeds), *tensor.shape[1:]) for name, tensor in batch.items()}
    for index, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(latents, t)  # only so that it does not warn: `denoise` scales
        sigma = scheduler.sigmas[index].float().expand(len(seeds))
        latents = scheduler.step(denoise(unet, latents, sigma, wide), t, latents).prev_sample
    return latents


def measure(
    base: Path, encoders: Encoders, unet: FramerUNet, clips: list[np.ndarray], samples: int, steps: int
) -> dict[str, list[float]]:
    """One value a clip for each row of the table."""
    scheduler = EulerDiscreteScheduler.from_pretrained(base / "scheduler")
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    ramp = torch.linspace(0, 1, FRAMES)[:, None, None, None]
    middle = slice(1, FRAMES - 1)
    for index, clip in enumerate(clips):
        truth, batch = to_signal(clip), prepare(encoders, clip, SEED + index)
        blend = truth[:1] * (1 - ramp) + truth[-1:] * ramp
        through = {
            "truth via codec": encoders.decode(encoders.latents(truth)),
            "blend": blend,
            "blend via codec": encoders.decode(encoders.latents(blend)),
            "hold first": truth[:1].expand_as(truth),
            "expected, one step": encoders.decode(one_step(unet, batch, SEED + index)[0] / encoders.scaling_factor),
        }
        singles: list[Tensor] = []
        if samples:
            drawn = sample(unet, scheduler, batch, [SEED + 100 * index + k for k in range(samples)], steps)
            drawn = drawn / encoders.scaling_factor
            through[f"expected, mean of {samples}"] = encoders.decode(drawn.mean(dim=0))
            singles = [encoders.decode(latents)[middle] for latents in drawn]
        for suffix, score in MEASURES.items():
            for name, video in through.items():
                note(f"{name}{suffix}", score(video[middle], truth[middle]))
            if singles:
                note(f"single sample{suffix}", float(np.mean([score(video, truth[middle]) for video in singles])))
    return rows


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval over clips."""
    data = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(data), (4000, len(data)))
    low, high = np.percentile(data[draws].mean(axis=1), [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def report(title: str, rows: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Print a table, with paired gains over the blend, and return what it says."""
    said = {}
    hard = np.argsort(rows["blend"])[: (len(rows["blend"]) + 1) // 2]
    print(f"\n{title}: {len(rows['blend'])} clips; last column: the half with the lowest blend")
    for name in [row for row in rows if not row.endswith(")")]:
        gain = [a - b for a, b in zip(rows[name], rows["blend"], strict=True)]
        said[f"{name} - blend"] = interval(gain)
        for suffix in MEASURES:
            said[f"{name}{suffix}"] = interval(rows[f"{name}{suffix}"])
        mean, low, high = said[f"{name} - blend"]
        said[f"{name} - blend, hard half"] = interval([gain[index] for index in hard])
        half = said[f"{name} - blend, hard half"]
        others = f"ssim {said[f'{name} (ssim)'][0]:.3f}   st-lpips {said[f'{name} (st_lpips)'][0]:.3f}"
        print(
            f"  {name:22s} {said[name][0]:6.2f} dB   over blend {mean:+6.2f} [{low:+.2f}, {high:+.2f}]"
            f"   {others}   {half[0]:+6.2f} [{half[1]:+.2f}, {half[2]:+.2f}]"
        )
    return said


def main(
    base: Path = BASE,
    clips: int = 64,
    samples: Annotated[int, typer.Option(help="of each clip; 0 leaves the rows of samples out")] = 8,
    steps: int = 8,
    real_clips: Annotated[int, typer.Option(help="of each video of --real")] = 16,
    real: Annotated[list[Path] | None, typer.Option(help="videos, measured and never trained on")] = None,
    stride: Annotated[int, typer.Option(help="frames between the frames of a clip of --real")] = 2,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print the tables of the README."""
    torch.set_num_threads(1)
    encoders = Encoders(base)
    unet = FramerUNet.from_pretrained(base / "unet", torch_dtype=torch.float32).eval()
    tables = {"procedural, 4-24 px": procedural_clips(clips, (4.0, 24.0))} if clips else {}
    for path in real or []:
        tables[f"{path.name}, stride {stride}"] = file_clips(path, real_clips, stride)
    said = {name: report(name, measure(base, encoders, unet, data, samples, steps)) for name, data in tables.items()}
    if out:
        out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
