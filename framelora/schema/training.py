"""Parameters of the adapter and of training. Names are those of diffusers' and the FramerTurbo guide's trainers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from framelora.schema.base import Positive, Section


class Adapter(Section):
    rank: Positive
    """Rank of the low-rank matrices."""
    alpha: Annotated[float, Field(gt=0)]
    """The adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout on the adapter's input."""
    target_modules: list[str] | None
    """Names of the Linear layers to adapt, matched by suffix; null takes the family's own list."""
    use_rslora: bool
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    use_dora: bool
    """Train magnitude and direction apart (arXiv 2402.09353)."""
    init: Literal["gaussian", "pissa"]
    """First values: A Gaussian and B zero, or the weight's principal components (arXiv 2404.02948)."""
    start_from: str | None
    """An earlier adapter to start from: a PEFT folder inside models/start/; null starts anew."""

    @model_validator(mode="after")
    def _one_decomposition(self) -> Adapter:
        if self.use_dora and self.init == "pissa":
            raise ValueError("use_dora and init: pissa can't be combined: set init to gaussian")
        if self.start_from is not None and self.init == "pissa":
            raise ValueError("init: pissa is a start of its own: set start_from to null")
        return self


class Train(Section):
    unet: Literal["lora", "full", "none"]
    """What is trained of the denoiser (a UNet or a transformer): an adapter, all of it, or nothing."""
    controlnet: Literal["lora", "full", "none"]
    """The same for the ControlNet, in families that have one; `none` leaves it out of training."""
    latents: Literal["cached", "live"]
    """Where latents and embeddings come from: the cells of `encode`, or the encoders, in this process, in every step.
    Both give the same losses; live is there to measure what caching saves."""
    seed: int
    """All draws of training are functions of this seed and the step."""
    num_train_epochs: Positive | None
    """Length in passes over the training windows; null: max_train_steps counts."""
    max_train_steps: Positive | None
    """Length in optimizer steps; null: num_train_epochs counts."""
    train_batch_size: Positive
    """Windows in a batch, for each process."""
    image_share: Annotated[float, Field(ge=0.001, le=0.999)] | None
    """Share of the batches that are single images, whatever their number; null: every item comes once an epoch."""
    gradient_accumulation_steps: Positive
    """Batches in an optimizer step."""
    num_processes: Positive
    """Processes that share each batch; the stage starts them itself, on a GPU each or on shares of the CPU."""
    optimizer: Literal["adamw", "adamw_8bit", "prodigy"]
    """AdamW; the same with 8-bit states (bitsandbytes, a GPU); Prodigy, which finds its own step size."""
    learning_rate: Annotated[float, Field(ge=0)]
    """Learning rate after warm-up (a factor on Prodigy's own: 1.0 there)."""
    controlnet_learning_rate: Annotated[float, Field(ge=0)] | None
    """The ControlNet's own; null: as learning_rate, which Prodigy demands."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
    """Schedule of the learning rate, counted in optimizer steps."""
    lr_warmup_steps: Annotated[int, Field(ge=0)]
    """Optimizer steps of linear warm-up, from 1 / lr_warmup_steps at the first (no effect under `constant`)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_weight_decay: Annotated[float, Field(ge=0)]
    adam_epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are clipped to this norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average that is validated and saved in place of the last values; 0: no average."""
    mixed_precision: Literal["no", "fp16", "bf16"]
    """Precision of the forward pass and of the frozen base; what is trained stays fp32."""
    base_int8: bool
    """Hold the frozen base's Linear layers in 8 bits (bitsandbytes)."""
    base_fp8: bool
    """Store the frozen base's Linear layers as float8, upcast while they compute; needs no GPU and no package. With
    gradient_checkpointing only: else every upcast layer is kept until the backward pass."""
    offload_optimizer: bool
    """Keep the optimizer's states, and the values it steps on, in the CPU's memory."""
    gradient_checkpointing: bool
    """Trade time for memory in the denoiser's backward pass."""
    checkpointing_steps: Positive
    """Optimizer steps between checkpoints, which a killed run goes on from and models/checkpoints/ keeps."""
    checkpoints_total_limit: Annotated[int, Field(ge=0)]
    """The newest checkpoints that are kept under models/checkpoints/, besides the final one and the best."""
    resume_from_checkpoint: str | None
    """A checkpoint of another run to go on from: its folder, inside models/start/, or `latest` of those there; null:
    begin, or go on by itself."""
    single_files: bool
    """Also write each checkpoint, the best and the final weights as one file with EasyAnimate's keys (kohya):
    models/checkpoints/checkpoint-N.safetensors beside checkpoint-N/. The files hold no state to go on from."""
    validation_steps: Positive
    """Optimizer steps between measurements of the validation loss."""
    validation_draws: Positive
    """Noise draws for each validation window and noise level; the same ones at every measurement."""
    validation_levels: Positive
    """Equal shares of the training noise levels in which the validation loss is measured."""
    publish: Literal["final", "best"]
    """Which weights go to models/adapter/: the last, or those of the lowest validation loss."""
    report_to: list[Literal["tensorboard", "wandb", "dvclive", "trackio"]]
    """Trackers that follow a run, as installed; they write under logs/, outside of every out."""

    @model_validator(mode="after")
    def _trains_something_for_one_length(self) -> Train:
        if (self.num_train_epochs is None) == (self.max_train_steps is None):
            raise ValueError("set one of num_train_epochs and max_train_steps, and the other to null")
        if self.unet == "none" and self.controlnet == "none":
            raise ValueError("unet and controlnet are both none: nothing would be trained")
        rates = {self.learning_rate, self.controlnet_learning_rate} - {None, 0.0}
        if self.optimizer == "prodigy" and len(rates) > 1 and "none" not in (self.unet, self.controlnet):
            raise ValueError("prodigy finds one step size for all: set controlnet_learning_rate to null")
        if self.base_int8 and self.base_fp8:
            raise ValueError("base_int8 and base_fp8 are two ways to hold the base: set one of them")
        if self.base_fp8 and not self.gradient_checkpointing:
            raise ValueError("base_fp8 saves nothing without gradient_checkpointing: set that to true")
        if (self.base_int8 or self.base_fp8) and "full" in (self.unet, self.controlnet):
            raise ValueError("base_int8 and base_fp8 hold a frozen base: nothing of it can be trained in full")
        return self
