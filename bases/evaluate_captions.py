"""Measure whether tiny-easyanimate renders what a caption names: the sprite's colour and direction.

Held-out captions (combinations of colour, shape and direction that were never trained on) are rendered from text
alone. A pixel shows a colour when it is strongly coloured and this is the nearest of the six; a clip shows the colour
of most such pixels. Its direction is that of the coloured pixels' centre from the first third of the clip to the last.
The same is measured on the true clips of those captions, which says how far the measurement can be trusted. Captions
of white and black sprites are left out, since neither stands out by its colour.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from crossings import crossing_scene, draw_names, pale
from diffusers import EasyAnimateTransformer3DModel, FlowMatchEulerDiscreteScheduler
from evaluate import HELD_OUT_SEED, interval
from layout import SEED
from layout_easyanimate import BASE, FRAMES, HEIGHT, WIDTH
from loop import one_thread
from torch import Tensor
from train_transformer import Encoders
from world import COLOURS, DIRECTIONS, build_textures, render

CHROMATIC = tuple(name for name in COLOURS if name not in ("white", "black"))
STRONG = 60.0  # largest minus smallest of red, green and blue, from which a pixel counts as coloured
FEWEST = 20  # coloured pixels a clip must show for a colour to be seen, and a third of it for a place


@torch.no_grad()
def sample(
    transformer: EasyAnimateTransformer3DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    text: Tensor,
    empty: Tensor,
    shape: tuple[int, ...],
    steps: int,
    guidance: float,
    seeds: list[int],
) -> Tensor:
    """Render captions `text` `[B, L, D]` from nothing else: scaled latents `[B, C, f, h, w]`."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, mu=1)
    latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    embeds = torch.cat([empty.expand_as(text), text])
    nothing = torch.zeros(len(embeds), 1 + shape[0], *shape[1:])
    for timestep in scheduler.timesteps:
        wide = torch.cat([latents, latents])
        time = timestep.expand(len(wide))
        output = transformer(wide, time, encoder_hidden_states=embeds, inpaint_latents=nothing).sample
        without, with_text = output.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
    return latents


def seen(frames: np.ndarray) -> tuple[str | None, str | None]:
    """The colour and the direction that a clip uint8 `[F, H, W, 3]` shows; None where nothing is strongly coloured."""
    pixels = frames.astype(np.float32)
    strong = pixels.max(axis=-1) - pixels.min(axis=-1) > STRONG
    if strong.sum() < FEWEST * len(frames) / 3:
        return None, None
    palette = np.float32([COLOURS[name] for name in CHROMATIC])
    hues = pixels[strong] - pixels[strong].mean(axis=-1, keepdims=True)  # without brightness, at equal strength
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    wanted = palette - palette.mean(axis=-1, keepdims=True)
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    nearest = np.argmax(hues @ wanted.T, axis=-1)
    colour = int(np.bincount(nearest, minlength=len(CHROMATIC)).argmax())
    shown = np.zeros(strong.shape, bool)
    shown[strong] = nearest == colour
    third = len(frames) // 3
    ends = []
    for part in (shown[:third], shown[-third:]):
        if part.sum() < FEWEST / 3:
            return CHROMATIC[colour], None
        ends.append(np.argwhere(part)[:, 1:].mean(axis=0))
    (y0, x0), (y1, x1) = ends
    return CHROMATIC[colour], DIRECTIONS[int(np.round(np.arctan2(y1 - y0, x1 - x0) / (np.pi / 4))) % 8]


def rates(named: list[tuple[str, str]], shown: list[tuple[str | None, str | None]]) -> dict[str, list[float]]:
    """For each caption 1 or 0: whether the colour, the direction, and the direction to within 45 degrees agree."""
    table: dict[str, list[float]] = {"colour": [], "direction": [], "direction to 45 degrees": []}
    for (colour, direction), (seen_colour, seen_direction) in zip(named, shown, strict=True):
        away = 8 if seen_direction is None else (DIRECTIONS.index(direction) - DIRECTIONS.index(seen_direction)) % 8
        table["colour"].append(float(colour == seen_colour))
        table["direction"].append(float(away == 0))
        table["direction to 45 degrees"].append(float(away in (0, 1, 7)))
    return table


def main(
    base: Path = BASE,
    captions: int = 64,
    steps: int = 16,
    guidance: float = 4.0,
    batch: int = 8,
    sheet: Annotated[Path | None, typer.Option(help="write the first clips as an image")] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print the table of the README: rates over held-out captions with 95 % intervals, and chance."""
    one_thread()
    encoders = Encoders(base)
    transformer = EasyAnimateTransformer3DModel.from_pretrained(base / "transformer", torch_dtype=torch.float32).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")
    textures = pale(build_textures(HELD_OUT_SEED))
    rng = np.random.default_rng(HELD_OUT_SEED)
    scenes = []
    while len(scenes) < captions:
        names = draw_names(rng, held_out=True)
        if names[0] in CHROMATIC:
            scenes.append((crossing_scene(rng, len(textures), *names), names))
    named = [(colour, direction) for _, (colour, _, direction) in scenes]
    ratio = encoders.vae.spatial_compression_ratio
    shape = (encoders.vae.config.latent_channels, FRAMES, HEIGHT // ratio, WIDTH // ratio)
    rendered, true = [], []
    for start in range(0, captions, batch):
        part = scenes[start : start + batch]
        text = torch.stack([encoders.text(scene.caption) for scene, _ in part])
        seeds = [SEED + start + place for place in range(len(part))]
        latents = sample(transformer, scheduler, text, encoders.text(""), shape, steps, guidance, seeds)
        rendered += [to_pixels(encoders.decode(clip)) for clip in latents]
        true += [render(scene, np.linspace(0, 1, FRAMES), textures) for scene, _ in part]
    said = {
        row: {name: interval(values) for name, values in rates(named, [seen(clip) for clip in clips]).items()}
        for row, clips in (("rendered", rendered), ("true clips", true))
    }
    print(f"{captions} held-out captions, {steps} steps, guidance {guidance}")
    chance = {"colour": 1 / len(CHROMATIC), "direction": 1 / 8, "direction to 45 degrees": 3 / 8}
    for row, table in said.items():
        for name, (mean, low, high) in table.items():
            print(f"  {row:11s} {name:24s} {mean:5.2f} [{low:.2f}, {high:.2f}]   chance {chance[name]:.2f}")
    if sheet:
        rows = [np.concatenate(list(clip[::2]), axis=1) for clip in rendered[:8]]
        cv2.imwrite(str(sheet), np.concatenate(rows)[..., ::-1])
    if out:
        out.write_text(json.dumps(said, indent=1) + "\n")


def to_pixels(signal: Tensor) -> np.ndarray:
    """Float `[F, 3, H, W]` in -1..1 to uint8 `[F, H, W, 3]`."""
    return ((signal.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    typer.run(main)
