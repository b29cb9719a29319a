"""Four metrics of VBench (Huang et al. 2024, arXiv 2311.17982) whose networks are given by path.

They look at no truth: one value a clip. What is given has to be what VBench uses, since the name says so:

* `subject_consistency`: a folder of DINO ViT-B/16 as transformers saves it (`config.json`, `model.safetensors`);
* `background_consistency`: the same of CLIP ViT-B/32;
* `motion_smoothness`: AMT-S as a TorchScript file, `network(one, other)` of RGB frames `[1, 3, H, W]` in [0, 1] whose
  sides are multiples of 16; it gives the frame halfway, of the same shape;
* `dynamic_degree`: RAFT as a TorchScript file, `network(one, other)` of RGB frames `[1, 3, H, W]` in [0, 255] whose
  sides are multiples of 8; it gives the flow from one to other in pixels (x, y), `[1, 2, H, W]`.

VBench's own numbers depend on the machine in places; docs/metrics.md says where, and what is done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from framelora.evaluation.metrics import Frames, as_tensor

SIDE = 224  # pixels; what both vision transformers were trained on
DINO_COLOUR = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of each channel
CLIP_COLOUR = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PAIRS_PER_SECOND = 8  # of the frames between which motion is measured
FASTEST = 0.05  # share of the pixels whose motion counts
MOVES = 6 / 256  # of the shorter side, from frame to frame
Measure = Callable[[Frames], float | None]
Pixels = Callable[[Frames], Tensor]


class WrongNetwork(Exception):
    """What is given is not the network that a metric needs; says what it is instead."""


def consistency(features: Tensor) -> float:
    """How alike the frames of a clip are in features `[F, D]`: VBench's subject and background consistency.

    The mean, over all frames but the first, of the cosine to the frame before and of that to the first frame, negative
    ones counted as zero.
    """
    unit = functional.normalize(features.double(), dim=-1)
    before = (unit[1:] * unit[:-1]).sum(dim=-1).clamp(min=0)
    first = (unit[1:] * unit[:1]).sum(dim=-1).clamp(min=0)
    return float((before + first).mean() / 2)


def dino_pixels(frames: Frames) -> Tensor:
    """Frames `[F, H, W, 3]` as DINO takes them, the shorter side at 224: `[F, 3, h, w]`."""
    return coloured(resized(as_tensor(frames), "bilinear"), DINO_COLOUR)


def clip_pixels(frames: Frames) -> Tensor:
    """Frames `[F, H, W, 3]` as CLIP takes them, a square in the middle: `[F, 3, 224, 224]`."""
    pixels = resized(as_tensor(frames), "bicubic")
    top, left = (round((side - SIDE) / 2) for side in pixels.shape[-2:])
    return coloured(pixels[..., top : top + SIDE, left : left + SIDE], CLIP_COLOUR)


def resized(pixels: Tensor, mode: str) -> Tensor:
    """Pictures `[F, C, H, W]` with the shorter side at 224, anti-aliased."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    size = (height * SIDE // short, width * SIDE // short)
    return functional.interpolate(pixels, size, mode=mode, antialias=True)


def coloured(pixels: Tensor, colour: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Pictures `[F, 3, H, W]` in [0, 1] with the mean and deviation of a network's training data taken out."""
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in colour)
    return (pixels - mean) / deviation


def subject_consistency(path: Path, device: torch.device, _: float) -> Measure:
    """Mean likeness of the frames to the one before and to the first, in DINO's features."""
    from transformers import ViTModel

    network = load_folder(ViTModel, path, device, "vit", add_pooling_layer=False)

    def features(pixels: Tensor) -> Tensor:
        found: Tensor = network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return found

    return by_frame(dino_pixels, features, device)


def background_consistency(path: Path, device: torch.device, _: float) -> Measure:
    """Mean likeness of the frames to the one before and to the first, in CLIP's features."""
    from transformers import CLIPVisionModelWithProjection

    network = load_folder(CLIPVisionModelWithProjection, path, device, "clip")

    def features(pixels: Tensor) -> Tensor:
        found: Tensor = network(pixel_values=pixels).image_embeds
        return found

    return by_frame(clip_pixels, features, device)


def by_frame(pixels_of: Pixels, features_of: Callable[[Tensor], Tensor], device: torch.device) -> Measure:
    """The consistency of features that are taken from a frame at a time, so that no clip is too long for memory."""

    @torch.inference_mode()
    def measure(frames: Frames) -> float:
        found = [features_of(pixels_of(frames[i : i + 1]).to(device)) for i in range(len(frames))]
        return consistency(torch.cat(found).cpu())

    return measure


def motion_smoothness(path: Path, device: torch.device, _: float) -> Measure:
    """How near every second frame is to what AMT makes of its neighbours: 1 less the mean difference over 255.

    None for clips of two frames.
    """
    network = load_torchscript(path, device)

    @torch.inference_mode()
    def measure(frames: Frames) -> float | None:
        if len(frames) < 3:
            return None
        pixels = as_tensor(frames).to(device)
        differences = []
        for at in range(1, len(frames) - 1, 2):
            one, other = (padded(pixels[i : i + 1], 16) for i in (at - 1, at + 1))
            made = unpadded(applied(network, one, other, 3, path), frames.shape[1:3])
            # Cut, not rounded, to 8 bits, as VBench does.
            levels = (made[0].permute(1, 2, 0).cpu().numpy() * 255).clip(0, 255).astype(np.uint8)
            differences.append(np.abs(levels.astype(int) - frames[at]).mean())
        return float(1 - np.mean(differences) / 255)

    return measure


def dynamic_degree(path: Path, device: torch.device, fps: float) -> Measure:
    """1 for a clip that moves and 0 for one that does not, so that the mean is the share of clips that move.

    A clip of n frames (at about 8 a second) moves when from `round(n / 4)` of its frames to the next, at least from
    one, the fastest 5 % of the pixels go further than 6 / 256 of the shorter side on average.
    """
    network = load_torchscript(path, device)

    @torch.inference_mode()
    def measure(frames: Frames) -> float:
        kept = frames[:: max(1, round(fps / PAIRS_PER_SECOND))]
        pixels = 255 * as_tensor(kept).to(device)
        moving = 0
        for one, other in itertools.pairwise(padded(pixels, 8).split(1)):
            flow = applied(network, one, other, 2, path)
            lengths = flow.square().sum(dim=1).sqrt().flatten().sort(descending=True).values
            fastest = lengths[: max(1, int(len(lengths) * FASTEST))].mean()
            moving += float(fastest) > MOVES * min(frames.shape[1:3])
        return float(moving >= max(1, round(len(kept) / 4)))

    return measure


def padded(pixels: Tensor, multiple: int) -> Tensor:
    """Pictures `[F, C, H, W]` with their border repeated on all sides until a multiple divides them."""
    height, width = (-side % multiple for side in pixels.shape[-2:])
    padding = (width // 2, width - width // 2, height // 2, height - height // 2)
    return functional.pad(pixels, padding, mode="replicate")


def unpadded(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle of pictures `[F, C, H, W]`, of a size (H, W): what `padded` was given."""
    top, left = ((padded_side - side) // 2 for padded_side, side in zip(pixels.shape[-2:], size, strict=True))
    return pixels[..., top : top + size[0], left : left + size[1]]


def load_folder(network: Any, path: Path, device: torch.device, kind: str, **options: Any) -> Any:
    """A network that transformers saved, from its safetensors; every one of its weights must be in there.

    Raises:
        WrongNetwork: the folder holds no such network, or not all of it.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if found not in (kind, f"{kind}_vision_model"):
            raise WrongNetwork(f"{path} holds a network of type {found}: give one of type {kind}")
        loaded, report = network.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WrongNetwork(
            f"{path}: no network can be read: {reason}: it needs config.json and model.safetensors"
        ) from None
    if report["missing_keys"]:
        raise WrongNetwork(f"{path} lacks weights, for example {min(report['missing_keys'])}: give the whole network")
    return loaded.eval().to(device)


def load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """A network from a TorchScript file: code of a restricted language, and nothing that is unpickled.

    Raises:
        WrongNetwork: the file is something else.
    """
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError):
        raise WrongNetwork(f"{path} is no TorchScript file: save the network with torch.jit.save") from None


def applied(network: Any, one: Tensor, other: Tensor, channels: int, path: Path) -> Tensor:
    """What a user's network makes of two frames `[1, 3, H, W]`: `[1, channels, H, W]`.

    Raises:
        WrongNetwork: it fails on them, or gives something else.
    """
    wanted, given = (1, channels, *one.shape[-2:]), tuple(one.shape)
    try:
        output = network(one, other)
    except RuntimeError as error:
        raise WrongNetwork(f"{path} fails on two frames of {given}: {str(error).strip().splitlines()[-1]}") from None
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != wanted:
        raise WrongNetwork(f"{path} makes {shape} of two frames of {given}: docs/metrics.md says what it has to give")
    return output.float()


BY_WEIGHTS: dict[str, Callable[[Path, torch.device, float], Measure]] = {
    "subject_consistency": subject_consistency,
    "background_consistency": background_consistency,
    "motion_smoothness": motion_smoothness,
    "dynamic_degree": dynamic_degree,
}
"""Makes each metric from its weights, the device and the frame rate of the clips."""
