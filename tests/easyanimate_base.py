"""A small EasyAnimate base of the real classes with seeded, untrained weights, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLMagvit, EasyAnimateTransformer3DModel, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from framelora.base_model import write_lock

WORDS = ("a", "the", "bird", "bunny", "cloud", "tree", "squirrel", "runs", "sits", "still", "left", "right", "in")
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "mmdit_layers": 2,
    "patch_size": 2,
    "sample_width": 16,
    "sample_height": 16,
}
VAE: dict[str, Any] = {
    "down_block_types": ("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
    "up_block_types": ("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "spatial_group_norm": True,
}


def make_transformer(**changes: Any) -> EasyAnimateTransformer3DModel:
    """The small transformer."""
    torch.manual_seed(0)
    return EasyAnimateTransformer3DModel(**(TRANSFORMER | changes))


def make_base(folder: Path, *, encoder: str = "bert", **changes: Any) -> Path:
    """Write a base: `transformer/ vae/ text_encoder/ tokenizer/ scheduler/ base.lock.json`.

    Args:
        folder: where to.
        encoder: bert or qwen2_vl.
        changes: to the transformer's configuration; `in_channels=9` makes it an inpaint model.
    """
    make_transformer(**changes).save_pretrained(folder / "transformer")
    torch.manual_seed(1)
    AutoencoderKLMagvit(**VAE).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|user|>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if encoder == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.chat_template = "{% for m in messages %}<|user|> {{ m['content'][0]['text'] }}{% endfor %}"
    fast.save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(vocabulary), "max_position_embeddings": 64}
    model: Any
    if encoder == "bert":
        model = BertModel(BertConfig(**sizes))
    else:
        vision = {"embed_dim": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
        text = sizes | {
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        }
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder / "text_encoder")
    write_lock(folder)
    return folder
