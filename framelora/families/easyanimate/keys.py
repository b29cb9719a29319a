"""How EasyAnimate's layers are called in adapter files, and their shapes, without loading a weight."""

from __future__ import annotations

from pathlib import Path

from diffusers import EasyAnimateTransformer3DModel

from framelora.families.easyanimate.networks.transformer import dead_layers, empty_transformer

NETWORK = "transformer"
KOHYA_PREFIX = "lora_unet__"  # the original's root module has no name, hence two underscores

# The original class has a second attention for the text where diffusers' has more projections in the first.
ORIGINAL = {
    "attn1.add_q_proj": "attn2.to_q",
    "attn1.add_k_proj": "attn2.to_k",
    "attn1.add_v_proj": "attn2.to_v",
    "attn1.to_add_out": "attn2.to_out.0",
}


def original_name(layer: str) -> str:
    """A Linear layer's name in the class of aigc-apps/EasyAnimate, from its name in diffusers' class."""
    for ours, theirs in ORIGINAL.items():
        if layer.endswith(f".{ours}"):
            return layer.removesuffix(ours) + theirs
    return layer


def empty_denoiser(base: Path) -> EasyAnimateTransformer3DModel:
    """A base's denoiser on the meta device: layers and shapes, no weights. Raises `Unsupported`."""
    return empty_transformer(base)


def idle_layers(layers: list[str]) -> list[str]:
    """Those of a denoiser's layers that can't learn: an adapter's pair on them stays zero."""
    return dead_layers(layers)
