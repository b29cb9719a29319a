"""params.yaml as frozen, typed sections. An unknown key, a wrong type or a reserved name is an error that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from framelora.console import UserError, relative

# DVC leaves parameters of these names out of its run cache's key (dvc issue 10296): it would serve outputs of an older
# value as fresh.
RESERVED = ("size", "nfiles")


def _bucket(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", text) or any(int(side) % 8 for side in text.split("x")):
        raise ValueError("write a bucket as WIDTHxHEIGHT in pixels, both multiples of 8, for example 512x320")
    return text


Bucket = Annotated[str, AfterValidator(_bucket)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Data(Section):
    root: str
    """Folder of the clips and image pairs, relative to the repository."""


class Extract(Section):
    fps: Annotated[float, Field(gt=0)]
    """Frames a second to keep. A slower source keeps its own rate: frames are never doubled."""
    buckets: Annotated[list[Bucket], Field(min_length=1)]
    """Allowed frame sizes, WIDTHxHEIGHT pixels; each source takes the one nearest in aspect, and is centre-cropped."""
    shot_threshold: Annotated[float, Field(gt=0)]
    """PySceneDetect ContentDetector's threshold: lower finds more cuts."""
    min_shot_seconds: Annotated[float, Field(gt=0)]
    """Cuts nearer than this to the one before are ignored."""
    max_shot_seconds: Annotated[float, Field(gt=0)]
    """Longer shots are divided, so memory does not grow with the length of a video; no window crosses a division."""
    on_error: Literal["stop", "skip"]
    """What an undecodable source does: stop the stage, or be listed in reports/extract/ and left out."""


class Pair(Section):
    num_frames: Annotated[int, Field(ge=3)]
    """Frames of a window, both ends included; with two there is nothing to learn."""
    stride: Positive
    """Frames from the start of one window to the start of the next."""
    val_fraction: Fraction
    """Share of the sources held out for the validation loss."""
    test_fraction: Fraction
    """Share of the sources held out for renders and metrics."""
    split_seed: int
    """Another seed deals the sources anew to train, val and test."""

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Pair:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


class Model(Section):
    family: Literal["framer"]
    """Model family: a folder of framelora/families/."""
    base: str
    """Folder of the base model, relative to the repository, with its base.lock.json."""


class FramerConditioning(Section):
    fps: Positive
    """Frame rate told to the UNet (it gets fps - 1, as SVD was trained)."""
    motion_bucket_id: Annotated[int, Field(ge=0)]
    """SVD's motion bucket told to the UNet."""
    noise_aug_strength: Annotated[float, Field(ge=0)]
    """Standard deviation of the noise on the condition images, in units of the [-1, 1] pixel range."""


class FramerEncode(Section):
    vae_batch: Positive
    """Frames the VAE encodes at once."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """How latents are stored; they are computed in float32."""


class FramerObjective(Section):
    sigma_log_mean: float
    """Mean of log sigma in training (SVD_Xtend: 0.7)."""
    sigma_log_std: Annotated[float, Field(gt=0)]
    """Standard deviation of log sigma in training (SVD_Xtend: 1.6)."""
    conditioning_dropout_prob: Annotated[float, Field(ge=0, le=1 / 3)]
    """p: CLIP tokens are dropped in [0, 2p), condition latents in [p, 3p) of one uniform draw (SVD_Xtend)."""


class FramerRender(Section):
    min_guidance_scale: Annotated[float, Field(ge=0)]
    """Guidance at the first frame; it rises linearly along the frames."""
    max_guidance_scale: Annotated[float, Field(ge=0)]
    """Guidance at the last frame."""
    decode_chunk_frames: Positive
    """Frames the VAE decodes at once; they see each other, so this changes the pictures."""


class Framer(Section):
    conditioning: FramerConditioning
    encode: FramerEncode
    objective: FramerObjective
    render: FramerRender


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


class Render(Section):
    seed: int
    """Seed of the initial noise, together with the pair's id."""
    num_inference_steps: Positive
    """Steps of the sampler."""
    lora_weights: Annotated[list[float], Field(min_length=1)]
    """Weights of the adapter to render, each multiplied with alpha / rank; the base is always rendered."""
    video_fps: Positive
    """Frame rate of the preview videos."""


class Score(Section):
    bootstrap_samples: Positive
    """Resamplings behind each confidence interval."""
    seed: int
    """Seed of the resampling."""


class Report(Section):
    title: str
    """Heading of the report page."""


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    extract: Extract
    pair: Pair
    model: Model
    framer: Framer
    adapter: Adapter
    train: Train
    render: Render
    score: Score
    report: Report

    @property
    def family(self) -> Framer:
        """The section of the chosen model family."""
        section: Framer = getattr(self, self.model.family)
        return section


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or holds a key that is unknown, missing, reserved or of a wrong
            type or value. One line names the first such key and counts the others.
    """
    where = relative(path)
    try:
        # YAML 1.2 as DVC reads it: 1e-4 is a number and `no` is a word.
        document = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{where} is missing: run from the repository's root") from None
    except MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where} is not valid YAML{line}: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{where} must hold sections such as `train:`, not {type(document).__name__}")
    _refuse_reserved(document, where)
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        first, *others = error.errors()
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            problem = " is unknown: check its spelling, or remove it"
        elif first["type"] == "missing":
            problem = " is missing: add it (params.yaml in git has its default)"
        else:
            value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
            message = first["msg"].removeprefix("Value error, ")
            problem = f"{value}: {message[0].lower()}{message[1:]}"
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{where}: {key}{problem}{more}") from None


def _refuse_reserved(value: Any, where: str, path: str = "") -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            inner_path = f"{path}.{name}" if path else str(name)
            if name in RESERVED:
                raise UserError(
                    f"{where}: {inner_path} has a reserved name: DVC ignores parameters called `size` or `nfiles` in "
                    "its cache and would serve stale outputs; rename it"
                )
            _refuse_reserved(inner, where, inner_path)
