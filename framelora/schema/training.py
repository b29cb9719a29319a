"""Parameters of the adapter and of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from framelora.schema.base import Fraction, Positive, Section


class Adapter(Section):
    rank: Positive
    """Rank of the low-rank matrices."""
    alpha: Annotated[float, Field(gt=0)]
    """The adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout on the adapter's input."""
    target_modules: list[str] | None
    """Names of the Linear layers to adapt, matched by suffix; null takes the family's own list."""


class Train(Section):
    seed: int
    """All draws of training are functions of this seed and the step."""
    max_train_steps: Positive
    """Optimizer steps."""
    train_batch_size: Positive
    """Windows in a batch, for each process."""
    gradient_accumulation_steps: Positive
    """Batches in an optimizer step."""
    learning_rate: Annotated[float, Field(ge=0)]
    """AdamW's learning rate after warm-up."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"]
    """Schedule of the learning rate, counted in optimizer steps."""
    lr_warmup_steps: Annotated[int, Field(ge=0)]
    """Optimizer steps of linear warm-up (no effect under `constant`)."""
    adam_beta1: Fraction
    adam_beta2: Fraction
    adam_weight_decay: Annotated[float, Field(ge=0)]
    adam_epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "fp16", "bf16"]
    """Precision of the denoiser's forward pass; the adapter itself stays fp32."""
    gradient_checkpointing: bool
    """Trade time for memory in the denoiser's backward pass."""
    checkpointing_steps: Positive
    """Optimizer steps between checkpoints that a killed run goes on from."""
    validation_steps: Positive
    """Optimizer steps between measurements of the validation loss."""
    validation_draws: Positive
    """Noise draws for each validation window; the same ones at every measurement."""
