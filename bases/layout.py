"""The networks of tiny-framer at their initial, seeded weights, and the atomic writing of a base folder.

A base folder has the layout that diffusers pipelines use: `unet/`, `vae/`, `image_encoder/`,
`feature_extractor/`, `scheduler/`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from framelora.families.framer.networks.unet import FramerUNet  # noqa: E402

SEED = 20240917
WIDTH, HEIGHT, FRAMES = 96, 64, 5
BASE = Path(__file__).resolve().parent / "tiny-framer"

VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (64, 64),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "latent_channels": 4,
    "layers_per_block": 1,
    "sample_size": WIDTH,
    "scaling_factor": 0.5,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": HEIGHT // 2,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (64, 64, 64),
    "down_block_types": ("DownBlockSpatioTemporal", "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (2, 2, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "num_frames": FRAMES,
}
CLIP_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}


TRUNK_SCALE = {"vae": 1e-3, "unet": 3e-3}  # the square root of the eps of each network's norms


def vae_trunk(name: str) -> bool:
    """Whether a parameter of the codec writes into the residual trunk."""
    return ".conv_in." in name or ".conv2." in name or ".to_out." in name or name.endswith("samplers.0.conv.bias")


def unet_trunk(name: str) -> bool:
    """Whether a parameter of the denoiser writes into what its last norm reads."""
    return name.startswith("up_blocks.2.resnets.1.") and (".conv2." in name or ".conv_shortcut." in name)


@torch.no_grad()
def soften_norms(model: torch.nn.Module, writes_trunk: Callable[[str], bool], scale: float) -> None:
    """Shrink what the trunk carries to the size of the norms' eps, and start residual branches at zero.

    64 channels make 32 groups of two. On a flat image a group of two normalises to its signs alone: brightness and
    contrast are lost. With a trunk of about sqrt(eps) the norm divides by
    sqrt(var + eps), nearly a constant, and brightness passes. Training must scale its steps alike (`parameter_groups`).
    """
    for name, parameter in model.named_parameters():
        if writes_trunk(name):
            parameter.mul_(0.0 if ".conv2." in name or ".to_out." in name or name.endswith("bias") else scale)


def parameter_groups(model: torch.nn.Module, writes_trunk: Callable[[str], bool], scale: float) -> list[dict[str, Any]]:
    """Two groups for an Adam optimizer; `share` is what the learning rate of each is to be multiplied by."""
    groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        groups[writes_trunk(name)].append(parameter)
    return [{"params": groups[False], "share": 1.0}, {"params": groups[True], "share": scale}]


def build_vae(seed: int = SEED) -> AutoencoderKLTemporalDecoder:
    """A codec at its initial weights: `[N, 3, 64, 96]` pixels to `[N, 4, 32, 48]` latents and back."""
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(**VAE_CONFIG)
    soften_norms(vae, vae_trunk, TRUNK_SCALE["vae"])
    return vae


def build_unet(seed: int = SEED) -> FramerUNet:
    """A denoiser at its initial weights: `[B, 5, 9, 32, 48]` to `[B, 5, 4, 32, 48]`."""
    torch.manual_seed(seed)
    unet = FramerUNet(**UNET_CONFIG)
    soften_norms(unet, unet_trunk, TRUNK_SCALE["unet"])
    torch.nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_image_encoder(seed: int = SEED) -> CLIPVisionModelWithProjection:
    """A CLIP vision tower with seeded random weights: `[N, 3, 32, 32]` to `[N, 32]`. It is never trained."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_CONFIG)).eval()


def save_part(part: Any, folder: Path) -> None:
    """Write one part of a base (anything with `save_pretrained`), each file by a temporary name and a rename."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        part.save_pretrained(temporary)
        config = Path(temporary) / "config.json"
        if config.exists():  # a part that was loaded says where from
            entries = json.loads(config.read_text())
            entries.pop("_name_or_path", None)
            config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
        for file in sorted(Path(temporary).iterdir()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.chmod(0o644)
            file.replace(folder / file.name)


def save_fixed_parts(base: Path) -> None:
    """Write the parts that no training changes: image encoder, image processor and scheduler."""
    size = CLIP_CONFIG["image_size"]
    save_part(build_image_encoder(), base / "image_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    save_part(processor, base / "feature_extractor")
    save_part(EulerDiscreteScheduler(**SCHEDULER_CONFIG), base / "scheduler")


def main(base: Path = BASE, fresh: bool = False) -> None:
    """Write a complete base; trained parts that exist already keep their weights unless `--fresh`."""
    save_fixed_parts(base)
    for name, build in (("vae", build_vae), ("unet", build_unet)):
        if fresh or not (base / name / "config.json").exists():
            part = build()
            save_part(part.half() if name == "unet" else part, base / name)


if __name__ == "__main__":
    typer.run(main)
