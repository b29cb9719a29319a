"""What a training step of Framer's is made of, from configurations alone: for estimates of its memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framelora.families.framer.keys import empty_denoiser
from framelora.families.framer.networks.controlnet import TrajectoryControlNet, new_controlnet
from framelora.families.framer.networks.unet import FramerUNet
from framelora.families.framer.spec import read_spec
from framelora.files import write_json

if TYPE_CHECKING:
    from framelora.schema.framer import Framer

# What the published base has and the classes' own defaults have not (config.json of stable-video-diffusion-img2vid-xt).
PUBLISHED_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "scaling_factor": 0.18215}


def write_published(folder: Path) -> None:
    """Write the configurations of framer_512x320 on SVD-xt, without a weight: enough to know the sizes of everything.

    Those of UNet and ControlNet are the defaults of the classes.
    """
    for name in ("unet", "controlnet"):
        write_json(folder / name / "config.json", {})
    write_json(folder / "vae/config.json", PUBLISHED_VAE)


def empty_controlnet(denoiser: FramerUNet, base: Path) -> TrajectoryControlNet:
    """The ControlNet that `loss.load_controlnet` would load or make, on the meta device."""
    with torch.device("meta"):
        if not (base / "controlnet/config.json").is_file():
            return new_controlnet(denoiser, read_spec(base).spatial_ratio, seed=0)
        config = TrajectoryControlNet.load_config(base / "controlnet", local_files_only=True)
        controlnet: TrajectoryControlNet = TrajectoryControlNet.from_config(config)
    return controlnet


def example_batch(
    base: Path, params: Framer, *, num_frames: int, width: int, height: int, controlnet: bool = False
) -> dict[str, Tensor]:
    """An item as `loss.read_window` gives it, of zeros.

    Args:
        base: folder of the base model; only its configurations are read.
        params: the family's parameters.
        num_frames, width, height: of the window; sides in pixels.
        controlnet: whether a ControlNet is trained, which is shown tracks.
    """
    spec = read_spec(base)
    frame = (spec.latent_channels, height // spec.spatial_ratio, width // spec.spatial_ratio)
    item = {name: torch.zeros(num_frames, *frame) for name in ("mean", "std")}
    item |= {name: torch.zeros(frame) for name in ("first", "last")}
    item |= {"condition_sigma": torch.ones(())} if params.conditioning.condition_noise == "bank" else {}
    item["image_embeds"] = torch.zeros(2, empty_denoiser(base).config.cross_attention_dim)
    if controlnet:
        points = params.encode.track_points
        item |= {"tracks": torch.zeros(num_frames, points, 2), "visible": torch.ones(num_frames, points)}
    return item
