"""Trajectory training as a whole: a tiny ControlNet learns from tracks, and then steers renders along new ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from numpy.typing import NDArray

from framelora.families.base import EncodeUnit
from framelora.families.framer import loss
from framelora.families.framer.codec import decode_latents
from framelora.families.framer.encode import Encoder
from framelora.families.framer.networks.controlnet import SteeredUNet
from framelora.families.framer.networks.heatmap import heatmaps
from framelora.families.framer.networks.sampling import (
    Ends,
    Steering,
    guidance_scales,
    load_scheduler,
    sample_latents,
)
from framelora.families.framer.networks.unet import added_time_ids
from framelora.params import load_params
from framelora.schema.framer import Framer

BASE = REPOSITORY / "bases/tiny-framer"
SIDE, FRAMES = 32, 3  # pixels, frames
Clip = tuple[NDArray[np.uint8], torch.Tensor]


def framer() -> Framer:
    """One point a clip, and more of the high noise levels at which a path is decided."""
    params = load_params(REPOSITORY / "params.yaml").framer
    assert params is not None
    changes = {"sigma_log_mean": 2.0, "sigma_log_std": 1.5, "conditioning_dropout_prob": 0.0}
    changes |= {"control_points_max": 1, "control_point_dropout": 0.0, "heatmap_side": 6}
    objective = params.objective.model_copy(update=changes)
    encode = params.encode.model_copy(update={"tracks": "lucas_kanade"})
    return params.model_copy(update={"objective": objective, "encode": encode})


def procedural_clip(seed: int) -> Clip:
    """A bright square that goes from left to right in an arc, above or below: the ends do not tell which.

    Returns:
        Frames `[F, H, W, 3]` and the square's track `[F, 1, 2]`.
    """
    random = np.random.default_rng(seed)
    frames = np.full((FRAMES, SIDE, SIDE, 3), random.integers(60, 100), np.uint8)
    rise = random.uniform(5, 9) * random.choice([-1, 1])
    times = np.linspace(0, 1, FRAMES)
    track = np.round(np.stack([8 + 16 * times, 16 + rise * 4 * times * (1 - times)], axis=1)).astype(int)
    for frame, (x, y) in zip(frames, track, strict=True):
        frame[y - 3 : y + 3, x - 3 : x + 3] = (240, 230, 220)
    return frames, torch.from_numpy(track[:, None].astype(np.float32))


def encoded(encoder: Encoder, clip: Clip) -> dict[str, torch.Tensor]:
    """A clip as `loss.read_window` gives it."""
    frames, track = clip
    latents = encoder.encode(EncodeUnit("latents", "s", "s"), frames)
    first, last = (encoder.encode(EncodeUnit("ends", "s", "s", (n,)), frames[[n]]) for n in (0, -1))
    return {
        **latents,
        "first": first["condition_latents"],
        "last": last["condition_latents"],
        "image_embeds": torch.stack([first["image_embeds"], last["image_embeds"]]),
        "tracks": track,
        "visible": torch.ones(FRAMES, 1),
    }


def bright_spot(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Centre of what is brighter than the ground, x and y in pixels."""
    grey = frame.astype(float).mean(-1)
    weight = np.clip(grey - np.median(grey) - 20, 0, None) + 1e-6
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    centre: NDArray[np.float64] = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    return centre


@pytest.mark.nightly
def test_steered_renders_follow_the_track_better_than_unsteered_ones() -> None:
    params = framer()
    encoder = Encoder(BASE, params, torch.device("cpu"))
    unet = loss.load_denoiser(BASE, torch.float32).eval().requires_grad_(False)
    controlnet = loss.load_controlnet(unet, BASE, torch.float32, seed=0).train()
    pool = [encoded(encoder, procedural_clip(seed)) for seed in range(64)]
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(60):
        chosen = np.random.default_rng(step).integers(0, len(pool), 4)
        batch = {name: torch.stack([pool[number][name] for number in chosen]) for name in pool[0]}
        seeds = [step * 4 + place for place in range(4)]
        value = loss.loss(unet, batch, seeds, BASE, params, controlnet=controlnet).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()

    controlnet.eval()
    misses: dict[str, list[float]] = {"steered": [], "unsteered": []}
    for seed in range(1000, 1008):  # clips it has not seen
        frames, track = procedural_clip(seed)
        item = encoded(encoder, (frames, track))
        steering = Steering(heatmaps(track, width=SIDE, height=SIDE, side=params.objective.heatmap_side)[None])
        for name, given in (("steered", steering), ("unsteered", None)):
            latents = sample_latents(
                SteeredUNet(unet, controlnet),
                load_scheduler(BASE),
                torch.randn((1, FRAMES, *item["first"].shape), generator=torch.Generator().manual_seed(seed)),
                Ends(item["first"][None], item["last"][None], item["image_embeds"][None]),
                added_time_ids(1, params.conditioning.fps, params.conditioning.motion_bucket_id, 0.02),
                num_inference_steps=6,
                guidance=guidance_scales(1.0, 1.0, FRAMES),
                steering=given,
            )
            clip = decode_latents(encoder.vae, latents[0] / encoder.vae.config.scaling_factor, FRAMES)
            misses[name].append(float(np.linalg.norm(bright_spot(clip[1]) - track[1, 0].numpy())))
    steered, unsteered = (float(np.mean(misses[name])) for name in ("steered", "unsteered"))
    assert steered < 2.5, misses  # pixels
    assert steered < 0.5 * unsteered, misses
