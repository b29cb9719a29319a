"""What the configurations of an EasyAnimate base say. No network is imported here."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

# What each part of a base's folder holds; a file of weights may be several, with an index.
PARTS = {
    "transformer": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json",),
    "scheduler": ("scheduler_config.json",),
}


class Unsupported(ValueError):
    """A base model that this family can't run; the text says which and why."""


@dataclass(frozen=True)
class BaseSpec:
    """What the configurations of a base model say.

    Attributes:
        latent_channels: C of the VAE.
        scaling_factor: what its latents are multiplied by for the transformer.
        spatial_ratio: pixels a latent, in each direction.
        temporal_ratio: frames a latent, after the first.
        patch: latents a side of the transformer's patches.
        inpaint: whether the transformer takes masked-video latents and a mask (-InP).
        condition_noise: whether the masked video of an inpaint model gets noise.
    """

    latent_channels: int
    scaling_factor: float
    spatial_ratio: int
    temporal_ratio: int
    patch: int
    inpaint: bool
    condition_noise: bool

    @property
    def side(self) -> int:
        """Both sides of a frame are multiples of it, in pixels: 16 for the published models."""
        return self.patch * self.spatial_ratio

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of 4n + 1 frames (with the usual ratio)."""
        return (num_frames - 1) // self.temporal_ratio + 1


def check_parts(base: Path, *parts: str) -> None:
    """See that parts of a base are there, without reading a weight; no name: all of them. Raises `Unsupported`."""
    for part in parts or PARTS:
        for name in PARTS[part]:
            path = base / part / name
            if not path.is_file() and (index := path.with_name(f"{name}.index.json")).is_file():
                pieces = sorted(set(read_config(index).get("weight_map", {}).values()))
                path = next((path.with_name(piece) for piece in pieces if not path.with_name(piece).is_file()), index)
            if not path.is_file():
                raise Unsupported(
                    f"{base} is no whole EasyAnimate base: {path.relative_to(base)} is missing: it holds "
                    f"{'/, '.join(PARTS)}/, as diffusers saves them"
                )


def check_base(base: Path) -> None:
    """See that a base is whole and in diffusers' layout; reads headers only. Raises `Unsupported`."""
    check_parts(base)
    check_layout(base)


def check_layout(base: Path) -> None:
    """See that the denoiser's weights have the names of diffusers' class, not the original's. Raises `Unsupported`."""
    original = sorted(name for name in tensor_names(base) if ".attn2." in name)
    if original:
        raise Unsupported(
            f"{base}/transformer is of EasyAnimate's original release ({original[0]}, where diffusers has projections "
            "in attn1): use the release whose name ends in -diffusers, such as EasyAnimateV5.1-12b-zh-InP-diffusers"
        )


def tensor_names(base: Path) -> frozenset[str]:
    """Names of the transformer's tensors, from its file's header or its index. Raises `Unsupported`."""
    path = base / "transformer" / PARTS["transformer"][1]
    path = path if path.is_file() else path.with_name(f"{path.name}.index.json")
    return _tensor_names(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _tensor_names(path: Path, modified: int) -> frozenset[str]:
    if path.suffix == ".json":
        return frozenset(read_config(path).get("weight_map", {}))
    try:
        with safe_open(path, "np") as file:
            return frozenset(file.keys())
    except SafetensorError as error:
        raise Unsupported(f"{path} is not a safetensors file: {error}: fetch it again") from None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a base. Raises `Unsupported` when it is missing or holds no mapping."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise Unsupported(
            f"{path.parent.parent} is no EasyAnimate base: {path.parent.name}/{path.name} is missing "
            f"(it holds {'/, '.join(PARTS)}/)"
        ) from None
    except ValueError as error:
        raise Unsupported(f"{path} is not valid JSON: {error}: restore it") from None
    if not isinstance(config, dict):
        raise Unsupported(f"{path} holds no configuration: restore it")
    return config


def read_spec(base: Path) -> BaseSpec:
    """Read and check a base model's configurations (defaults are those of diffusers' classes).

    Raises:
        Unsupported: `vae/config.json` or `transformer/config.json` is missing or damaged; two text encoders (V5),
            blocks that diffusers computes otherwise than the original, a control model, or a mask that goes through
            the VAE.
    """
    vae, transformer = read_config(base / "vae/config.json"), read_config(base / "transformer/config.json")
    if transformer.get("text_embed_dim_t5") is not None or (base / "text_encoder_2").is_dir():
        raise Unsupported("EasyAnimate V5 has two text encoders (BERT and T5): use V5.1, which has one (Qwen2-VL)")
    layers, mmdit_layers = transformer.get("num_layers", 48), transformer.get("mmdit_layers", 48)
    if mmdit_layers < layers:
        raise Unsupported(
            f"mmdit_layers {mmdit_layers} is below num_layers {layers}: diffusers leaves out a projection of the text "
            "in such blocks, so its outputs differ from EasyAnimate's by a few per cent"
        )
    channels = vae.get("latent_channels", 16)
    in_channels = transformer.get("in_channels")
    if in_channels not in (channels, 2 * channels + 1):
        raise Unsupported(
            f"the transformer takes {in_channels} channels: only text to video ({channels}) and V5.1 inpaint models "
            f"({2 * channels + 1}) can be trained"
        )
    inpaint = in_channels != channels
    if inpaint and not transformer.get("resize_inpaint_mask_directly", True):
        raise Unsupported("this inpaint model passes its mask through the VAE (before V5.1): use a V5.1 model")
    blocks = len(vae.get("block_out_channels", (128, 256, 512, 512)))
    return BaseSpec(
        latent_channels=channels,
        scaling_factor=float(vae.get("scaling_factor", 0.7125)),
        spatial_ratio=2 ** (blocks - 1),
        temporal_ratio=2 ** (blocks - 2),
        patch=transformer.get("patch_size") or 2,
        inpaint=inpaint,
        condition_noise=inpaint and transformer.get("add_noise_in_inpaint_model", True),
    )
