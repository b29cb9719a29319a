"""EasyAnimate's denoiser and the layers of it that an adapter changes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import EasyAnimateTransformer3DModel
from torch import nn

from framelora.families.easyanimate.spec import Unsupported, check_layout, check_parts, read_spec, tensor_names


def load_transformer(base: Path, dtype: torch.dtype = torch.float32) -> EasyAnimateTransformer3DModel:
    """Load the denoiser of a base model folder (`base/transformer`).

    Raises:
        Unsupported: as `read_spec` does; there are no weights, or those of the original release; or tensors are missing
            or unknown, of which the first is named.
    """
    expected = set(empty_transformer(base).state_dict())
    check_parts(base, "transformer")
    check_layout(base)
    found = tensor_names(base)
    if expected != found:
        named = " and ".join(
            f"{len(names)} tensors {what} (the first is {min(names)})"
            for what, names in (("are missing", expected - found), ("are unknown", found - expected))
            if names
        )
        raise Unsupported(f"{base}/transformer is not what its config.json says: {named}: fetch the base again")
    return EasyAnimateTransformer3DModel.from_pretrained(
        base / "transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
    )


def empty_transformer(base: Path) -> EasyAnimateTransformer3DModel:
    """The denoiser on the meta device: layers and shapes from its configuration, no weights. Raises `Unsupported`."""
    read_spec(base)
    config = EasyAnimateTransformer3DModel.load_config(base / "transformer", local_files_only=True)
    with torch.device("meta"):
        denoiser: EasyAnimateTransformer3DModel = EasyAnimateTransformer3DModel.from_config(config)
    return denoiser


def linear_layers(transformer: nn.Module) -> list[str]:
    """Names of every Linear layer, in order: EasyAnimate's own trainer adapts them all, modulations too."""
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


def dead_layers(names: list[str]) -> list[str]:
    """Those of the layers that can't learn: what the last block makes of the text is read by nothing.

    Its queries, output and feed-forward of the text; keys and values of the text still reach the video.
    """
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("transformer_blocks.")]
    last = f"transformer_blocks.{max(blocks, default=0)}."
    idle = ("attn1.add_q_proj", "attn1.to_add_out", "txt_ff.net.0.proj", "txt_ff.net.2")
    return [name for name in names if name.startswith(last) and name.removeprefix(last) in idle]
