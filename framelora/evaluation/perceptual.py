"""ST-LPIPS: the distance of two pictures in the features of a network trained on people's judgements.

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022). The weights are those of the distribution
`stlpips-pytorch` (BSD 2-Clause); its code is not imported, since that needs torchvision and more.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from framelora.evaluation.metrics import Frames, Values, as_tensor

WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"


class Scaling(nn.Module):
    """From [-1, 1] to the range that AlexNet was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shift and scale the channels of `[B, 3, H, W]`."""
        return (x - self.shift) / self.scale


class Halve(nn.Module):
    """Anti-aliased subsampling: a 3x3 binomial filter, then every second pixel."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Halve `[B, C, H, W]`."""
        return functional.conv2d(functional.pad(x, (2, 2, 2, 2), "reflect"), self.filt, stride=2, groups=x.shape[1])


class ShiftTolerantLpips(nn.Module):
    """An AlexNet whose strides are anti-aliased, and a weight for each channel of its five layers."""

    channels = (64, 192, 384, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        pool = nn.MaxPool2d(3, stride=1)
        layers = (
            # The numbers are the modules' names in the published weights.
            {"0": nn.Conv2d(3, 64, 11, padding=2), "1": Halve(64), "2": nn.ReLU()},
            {"3": pool, "4": Halve(64), "5": nn.Conv2d(64, 192, 5, padding=2), "6": nn.ReLU()},
            {"7": pool, "8": Halve(192), "9": nn.Conv2d(192, 384, 3, padding=1), "10": nn.ReLU()},
            {"11": nn.Conv2d(384, 256, 3, padding=1), "12": nn.ReLU()},
            {"13": nn.Conv2d(256, 256, 3, padding=1), "14": nn.ReLU()},
        )
        self.net = nn.Module()
        self.slices = []
        for number, modules in enumerate(layers, start=1):
            part = nn.Sequential()
            for name, module in modules.items():
                part.add_module(name, module)
            self.net.add_module(f"slice{number}", part)
            self.slices.append(part)
        self.heads = []
        for number, channels in enumerate(self.channels):
            head = nn.Module()
            # Second of a pair: the first, a dropout, only matters in training.
            head.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{number}", head)
            self.heads.append(head.model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances `[B]` of pictures `[B, 3, H, W]` in [-1, 1]."""
        x, y = self.scaling_layer(x), self.scaling_layer(y)
        total = x.new_zeros(len(x))
        for part, head in zip(self.slices, self.heads, strict=True):
            x, y = part(x), part(y)
            total = total + head((unit(x) - unit(y)) ** 2).mean(dim=(1, 2, 3))
        return total


def unit(features: Tensor) -> Tensor:
    """Features `[B, C, H, W]` at length one over the channels."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


@functools.cache
def load_network(device: str) -> ShiftTolerantLpips:
    """The network with the published weights."""
    # The package itself is not imported: the specification alone tells where its files lie.
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("stlpips_pytorch is not installed: it holds the weights of ST-LPIPS")
    path = Path(next(iter(spec.submodule_search_locations))) / WEIGHTS
    network = ShiftTolerantLpips()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().to(device)


@torch.inference_mode()
def st_lpips(frames: Frames, truth: Frames) -> Values:
    """The distance of each frame `[F, H, W, 3]` to the true one: `[F]`, 0 for equal frames."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_network(device)
    given, true = (2 * as_tensor(clip) - 1 for clip in (frames, truth))
    # One by one: the memory of a frame's features does not depend on the length of the clip.
    values = [network(given[i : i + 1].to(device), true[i : i + 1].to(device)) for i in range(len(frames))]
    return np.asarray(torch.cat(values).cpu(), dtype=np.float64)
