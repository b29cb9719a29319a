"""FID and FVD: how far two sets of pictures or clips are apart in the features of a given network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

Features = NDArray[np.float64]


def frechet_distance(one: Features, other: Features) -> float:
    """The squared Frechet distance of two Gaussians fitted to features `[N, D]`: Heusel et al. 2017, equation 6."""
    shift = one.mean(axis=0) - other.mean(axis=0)
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1])
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


class Extractor:
    """A feature network in TorchScript: NVIDIA's `inception-2015-12-05.pt`, or `i3d_torchscript.pt` of StyleGAN-V.

    Nothing is unpickled: TorchScript archives hold code of its own restricted language.
    """

    def __init__(self, name: str, path: Path, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.network = torch.jit.load(str(path), map_location=device).eval()

    @torch.inference_mode()
    def features(self, clips: Iterable[NDArray[np.uint8]]) -> Features:
        """Features `[N, D]` of clips `[F, H, W, 3]`: one a middle frame for FID, one a clip for FVD."""
        found = []
        for clip in clips:
            frames = torch.from_numpy(np.ascontiguousarray(clip)).to(self.device).permute(0, 3, 1, 2)
            if self.name == "fid":
                output = self.network(frames[1:-1], return_features=True)
            else:
                video = frames.permute(1, 0, 2, 3)[None].float()
                output = self.network(video, rescale=True, resize=True, return_features=True)
            found.append(output.double().cpu().numpy())
        return np.concatenate(found)
