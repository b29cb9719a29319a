"""The networks of tiny-easyanimate at their initial, seeded weights, its text encoder and its tokenizer.

The folder has the layout that diffusers' EasyAnimate pipelines use: `transformer/`, `vae/`, `text_encoder/`,
`tokenizer/`, `scheduler/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from diffusers import AutoencoderKLMagvit, EasyAnimateTransformer3DModel, FlowMatchEulerDiscreteScheduler
from layout import SEED, save_part
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from world import COLOURS, DIRECTIONS, SHAPES

BASE = Path(__file__).resolve().parent / "tiny-easyanimate"
WIDTH, HEIGHT, FRAMES = 96, 64, 9
TEXT_LENGTH = 32  # tokens: every caption is padded to it, and the transformer attends to the padding as well
LATENT_CHANNELS = 4

VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 24),
    "down_block_types": ("SpatialDownBlock3D", "SpatialTemporalDownBlock3D"),
    "up_block_types": ("SpatialUpBlock3D", "SpatialTemporalUpBlock3D"),
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
TRANSFORMER_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 2 * LATENT_CHANNELS + 1,
    "out_channels": LATENT_CHANNELS,
    "patch_size": 4,
    "sample_width": WIDTH // 2,
    "sample_height": HEIGHT // 2,
    "num_layers": 4,
    "mmdit_layers": 4,
    "time_embed_dim": 64,
    "text_embed_dim": 64,
    "add_noise_in_inpaint_model": False,
}
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_LENGTH,
    "hidden_act": "gelu",
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OTHER_WORDS = "a an and the moves stays view camera zooms in out rolls textured scene still shot of"


def words() -> list[str]:
    """The words of the world's captions, each once, in the order of first use."""
    sentences = [OTHER_WORDS, *COLOURS, *SHAPES, *DIRECTIONS]
    return list(dict.fromkeys(word for sentence in sentences for word in sentence.split()))


def vocabulary() -> dict[str, int]:
    """WordPiece tokens: special ones, the captions' words, and all characters, so that any text has tokens."""
    characters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *",.;:!?'\"()-/&%+"]
    tokens = [*SPECIAL, *words(), *characters, *(f"##{character}" for character in characters)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of BERT's kind."""
    vocab = vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    limit = TEXT_CONFIG["max_position_embeddings"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **names)


def build_text_encoder(seed: int = SEED) -> BertModel:
    """A BERT with seeded random weights, never trained: its states tell words and their places apart."""
    torch.manual_seed(seed)
    return BertModel(BertConfig(vocab_size=len(vocabulary()), pad_token_id=0, **TEXT_CONFIG)).eval()


def build_vae(seed: int = SEED) -> AutoencoderKLMagvit:
    """A causal codec at its initial weights: `[N, 3, F, 64, 96]` to `[N, 4, F, 32, 48]` and back."""
    torch.manual_seed(seed)
    return AutoencoderKLMagvit(**VAE_CONFIG)


def build_transformer(seed: int = SEED) -> EasyAnimateTransformer3DModel:
    """A denoiser at its initial weights; its last layer starts at zero."""
    torch.manual_seed(seed)
    transformer = EasyAnimateTransformer3DModel(**TRANSFORMER_CONFIG)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def save_fixed_parts(base: Path) -> None:
    """Write the parts that no training changes: text encoder, tokenizer and scheduler."""
    save_part(build_text_encoder(), base / "text_encoder")
    save_part(build_tokenizer(), base / "tokenizer")
    save_part(FlowMatchEulerDiscreteScheduler(), base / "scheduler")


def main(base: Path = BASE, fresh: bool = False) -> None:
    """Write a complete base; trained parts that exist already keep their weights unless `--fresh`."""
    save_fixed_parts(base)
    for name, build in (("vae", build_vae), ("transformer", build_transformer)):
        if fresh or not (base / name / "config.json").exists():
            part = build()
            save_part(part.half() if name == "transformer" else part, base / name)


if __name__ == "__main__":
    typer.run(main)
