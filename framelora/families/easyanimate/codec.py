"""What turns frames and text into EasyAnimate's latents and embeddings and back: VAE, text encoder, scheduler."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLMagvit, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import AutoTokenizer, BertModel, Qwen2VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from framelora.families.easyanimate.spec import Unsupported, check_parts, read_config

ENCODERS = {"qwen2_vl": Qwen2VLForConditionalGeneration, "bert": BertModel}


def load_vae(base: Path) -> AutoencoderKLMagvit:
    """Load the VAE (`base/vae`) in fp32. Raises `Unsupported` when it is not there."""
    check_parts(base, "vae")
    return AutoencoderKLMagvit.from_pretrained(base / "vae", local_files_only=True)


@functools.lru_cache(maxsize=2)
def load_scheduler(base: Path) -> FlowMatchEulerDiscreteScheduler:
    """Load the flow-matching scheduler (`base/scheduler`): its shift decides training's and sampling's sigmas.

    Raises `Unsupported` when it is not there.
    """
    check_parts(base, "scheduler")
    return FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler", local_files_only=True)


class TextEncoder:
    """One text encoder and its tokenizer: Qwen2-VL (V5.1) or BERT."""

    def __init__(self, base: Path, max_length: int, device: torch.device, *, layer_by_layer: bool = False) -> None:
        """
        Args:
            base: folder of the base model; reads `text_encoder/` and `tokenizer/`.
            max_length: tokens to which every text is padded.
            device: where it computes.
            layer_by_layer: whether only the layer that computes is on the device.

        Raises:
            Unsupported: there is none, or another than those two.
        """
        disable_progress_bar()
        check_parts(base, "text_encoder", "tokenizer")
        self.kind = read_config(base / "text_encoder/config.json").get("model_type")
        if self.kind not in ENCODERS:
            raise Unsupported(f"the text encoder is of type {self.kind}: only {' and '.join(ENCODERS)} are known")
        self.device = device
        self.max_length = max_length
        self.cut: list[str] = []
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        self.model = ENCODERS[self.kind].from_pretrained(base / "text_encoder", local_files_only=True, dtype="auto")
        self.model.eval().requires_grad_(False)
        if layer_by_layer:
            cpu_offload(self.model, execution_device=device)
        else:
            self.model.to(device)

    @torch.no_grad()
    def embed(self, text: str, *, truncate: bool = False) -> Tensor:
        """Embed one text: `[L, D]`, padded to `max_length` tokens.

        Qwen2-VL gets the text as a user's message and gives its last hidden state but one; BERT gets the text as it is
        and gives its last hidden state (EasyAnimatePipeline.encode_prompt; EasyAnimate V5).

        Args:
            text: the text.
            truncate: whether a text that is too long loses its end (noted in `cut`).

        Raises:
            ValueError: the text has more tokens than that, or than the encoder has positions for.
        """
        if self.kind == "qwen2_vl":
            message = {"role": "user", "content": [{"type": "text", "text": text}]}
            text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        longest = min(self.max_length, getattr(self.model.config, "max_position_embeddings", None) or self.max_length)
        tokens = self.tokenizer(text=text, padding="max_length", max_length=longest, padding_side="right")
        if (count := len(tokens.input_ids)) > longest:
            if not truncate:
                raise ValueError(f"the text has {count} tokens, and the encoder takes {longest}: shorten it")
            self.cut.append(f"{longest} of {count} tokens kept: {text[:40]}...")
            tokens = self.tokenizer(
                text=text, padding="max_length", max_length=longest, padding_side="right", truncation=True
            )
        inputs = {
            "input_ids": torch.tensor([tokens.input_ids], device=self.device),
            "attention_mask": torch.tensor([tokens.attention_mask], device=self.device),
        }
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        embeds: Tensor = states[-2 if self.kind == "qwen2_vl" else -1][0]
        return embeds
