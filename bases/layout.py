"""The networks of tiny-framer at their initial, seeded weights, and the atomic writing of a base folder.

A base folder has the layout that diffusers pipelines use: `unet/`, `vae/`, `image_encoder/`,
`feature_extractor/`, `scheduler/`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from framelora.families.framer.networks.unet import FramerUNet  # noqa: E402

SEED = 20240917
WIDTH, HEIGHT, FRAMES = 96, 64, 5
BASE = Path(__file__).resolve().parent / "tiny-framer"

VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (64, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "sample_size": WIDTH,
    "scaling_factor": 0.5,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": HEIGHT // 4,
    "in_channels": 17,
    "out_channels": 8,
    "block_out_channels": (96, 96),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (3, 3),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "num_frames": FRAMES,
}
# The denoiser is trained with attention on its lower level too, which turns out to do nothing: saving leaves it out.
TRAINED_UNET_CONFIG = UNET_CONFIG | {"down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2}
UNUSED = "down_blocks.1.attentions."
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


def build_vae(seed: int = SEED) -> AutoencoderKLTemporalDecoder:
    """A codec with silent residual branches: `[N, 3, 64, 96]` pixels to `[N, 8, 16, 24]` latents and back."""
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(**VAE_CONFIG)
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".to_out." in name:
            torch.nn.init.zeros_(parameter)
    return vae


REFERENCE = 20.0  # the constant that steadies a norm's group; the signals beside it are about 0.5
PLAIN_REFERENCE = 2.0  # the same in groups that carry learned features
SIGNAL_GAIN = 0.25  # of condition latents on the trunk: their standard deviation is 2


def _steady(norm: nn.GroupNorm, groups: int) -> None:
    """Let the first groups (s, -s, REFERENCE) of a norm pass s and -s as they are."""
    for channel in range(3 * groups):
        third = channel % 3 == 2
        norm.weight[channel] = 0.0 if third else REFERENCE * math.sqrt(2) / 3
        norm.bias[channel] = 0.0 if third else REFERENCE / 3


def _write(weight: Tensor, bias: Tensor, group: int, taps: dict[int, Tensor]) -> None:
    """Let output group `group` be (s, -s, REFERENCE), with s the sum of `taps[i]` times input channel i."""
    out = 3 * group
    weight[out : out + 3] = 0
    bias[out : out + 3] = torch.tensor([0.0, 0.0, REFERENCE])
    for channel, kernel in taps.items():
        weight[out, channel], weight[out + 1, channel] = kernel, -kernel


def _read(group: int, kernel: Tensor) -> dict[int, Tensor]:
    """`taps` that read s of a group (s, -s, REFERENCE) after a norm and an activation: silu(s) - silu(-s) = s."""
    return {3 * group: kernel, 3 * group + 1: -kernel}


def _mix_in_time(block: nn.Module, source: int, first: tuple[float, ...], second: tuple[float, ...]) -> None:
    """Let a block's temporal branch add `second` * `first` * s to groups 8 to 15, s in the 8 groups from `source`."""
    branch = block.temporal_res_block
    share = 1 - torch.sigmoid(block.time_mixer.mix_factor)  # of the branch in the block's output
    _steady(branch.norm1, 16)
    _steady(branch.norm2, 8)
    branch.time_emb_proj.weight[:24] = 0
    branch.time_emb_proj.bias[:24] = 0
    for k in range(8):
        kernel = torch.tensor(first)[:, None, None]
        _write(branch.conv1.weight, branch.conv1.bias, k, _read(source + k, kernel))
        for channel, taps in _read(k, torch.tensor(second)[:, None, None] / share).items():
            branch.conv2.weight[24 + 3 * k, channel] = taps
            branch.conv2.weight[25 + 3 * k, channel] = -taps


@torch.no_grad()
def build_unet(seed: int = SEED) -> FramerUNet:
    """A denoiser that starts as the linear blend of its ends: `[B, 5, 17, 16, 24]` to `[B, 5, 8, 16, 24]`.

    With 96 channels, GroupNorm's 32 groups have three channels each. Where one of three is a constant and the others
    are s and -s, the norm divides by nearly the constant and s passes, brightness and all, which it does not in a
    narrow group otherwise. Through such groups the condition latents c (0 on the middle frames) take a linear path:
    groups 0 to 7 carry c, groups 8 to 15 first Q = [1,1,1]/4 * ([1,0,1] * c), then P = Q + [1,0,1] * Q, where * is
    the convolution over five zero-padded frames, and P + c/2 is 3/4, 1/2, 1/4 of the first end plus the rest of the
    last end on the middle frames. All other residual branches start at zero.
    """
    torch.manual_seed(seed)
    unet = FramerUNet(**TRAINED_UNET_CONFIG)
    unet.mask_token.zero_()
    for name, parameter in unet.named_parameters():
        if ".conv2." in name or ".proj_out." in name or name.startswith("conv_out."):
            parameter.zero_()
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    last = unet.up_blocks[1].resnets
    references = torch.full((16,), PLAIN_REFERENCE)
    for writer in (unet.conv_in, last[0].spatial_res_block.conv_shortcut, last[1].spatial_res_block.conv_shortcut):
        writer.weight[50::3] = 0
        writer.bias[50::3] = references
    for k in range(8):
        _write(unet.conv_in.weight, unet.conv_in.bias, k, {8 + k: centre * SIGNAL_GAIN})
        _write(unet.conv_in.weight, unet.conv_in.bias, 8 + k, {})
    _mix_in_time(unet.down_blocks[0].resnets[0], 0, (1.0, 0.0, 1.0), (0.25, 0.25, 0.25))
    _mix_in_time(last[0], 8, (1.0, 0.0, 1.0), (0.0, 1.0, 0.0))
    one = torch.ones(1, 1)
    for resnet, offset in ((last[0], UNET_CONFIG["block_out_channels"][1]), (last[1], 0)):  # from the skip, from below
        shortcut = resnet.spatial_res_block.conv_shortcut
        for group in range(16):
            _write(shortcut.weight, shortcut.bias, group, {offset + 3 * group: one})
    _steady(unet.conv_norm_out, 16)
    scale = VAE_CONFIG["scaling_factor"] / SIGNAL_GAIN
    for k in range(8):
        for channel, taps in (_read(8 + k, -scale * centre) | _read(k, -scale / 2 * centre)).items():
            unet.conv_out.weight[k, channel] = taps
    return unet


def without_unused(unet: FramerUNet) -> FramerUNet:
    """A denoiser in half precision as it is shipped, of one as `build_unet` builds it."""
    shipped = FramerUNet(**UNET_CONFIG).half()
    shipped.load_state_dict({name: value for name, value in unet.state_dict().items() if not name.startswith(UNUSED)})
    return shipped


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
    if fresh or not (base / "vae/config.json").exists():
        save_part(build_vae().half(), base / "vae")
    if fresh or not (base / "unet/config.json").exists():
        save_part(without_unused(build_unet()), base / "unet")


if __name__ == "__main__":
    typer.run(main)
