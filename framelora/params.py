"""params.yaml as frozen, typed sections. An unknown key, a wrong type or a reserved name is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from framelora.console import UserError, one_line, relative
from framelora.schema.base import Section
from framelora.schema.data import Captions, Data, Extract, Pair
from framelora.schema.easyanimate import EasyAnimate
from framelora.schema.framer import Framer
from framelora.schema.output import Render, Report, Score
from framelora.schema.training import Adapter, Train

# DVC leaves parameters of these names out of its run cache's key (dvc issue 10296): it would serve outputs of an older
# value as fresh.
RESERVED = ("size", "nfiles")


class Model(Section):
    family: Literal["framer", "easyanimate"]
    """Model family: a folder of framelora/families/."""
    base: str
    """Folder of the base model, relative to the repository, with its base.lock.json."""


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    captions: Captions
    extract: Extract
    pair: Pair
    model: Model
    framer: Framer | None = None
    easyanimate: EasyAnimate | None = None
    adapter: Adapter
    train: Train
    render: Render
    score: Score
    report: Report

    @property
    def family(self) -> Any:
        """The section of the chosen model family."""
        return getattr(self, self.model.family)


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
        raise UserError(f"{where} is not valid YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise UserError(f"{where} must hold sections such as `train:`, not {type(document).__name__}")
    _refuse_reserved(document, where)
    try:
        params = Params.model_validate(document)
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
    if params.family is None:
        raise UserError(f"{where}: {params.model.family} is missing: add it (params.yaml in git has its default)")
    if params.easyanimate is not None and params.model.family == "easyanimate":
        _check_easyanimate(params, params.easyanimate, where)
    framer = params.framer if params.model.family == "framer" else None
    if framer is not None and params.train.controlnet != "none" and framer.encode.tracks == "none":
        raise UserError(
            f"{where}: train.controlnet: {params.train.controlnet} needs tracks to learn from: set "
            "framer.encode.tracks to lucas_kanade"
        )
    if framer is not None and framer.render.tracks != "none" and params.train.controlnet == "none":
        raise UserError(
            f"{where}: framer.render.tracks: {framer.render.tracks} steers by a ControlNet that was trained: set "
            "train.controlnet to lora or full, or tracks to none"
        )
    return params


def _check_easyanimate(params: Params, easyanimate: EasyAnimate, where: str) -> None:
    """Refuse what EasyAnimate's parameters and others are not together. Raises `UserError`."""
    if easyanimate.conditioning.fresh_masks and params.train.latents != "live":
        raise UserError(
            f"{where}: easyanimate.conditioning.fresh_masks: true needs train.latents: live, since no cell holds such "
            "masks: set it to false, or raise pixel_draws"
        )
    whole = "train.unet: full" if params.train.unet == "full" else ""
    if params.train.unet == "lora" and params.adapter.use_dora:
        whole = "adapter.use_dora"
    held = easyanimate.render
    if whole and (rounded := rounding_choice(held.dtype, held.memory_mode)):
        raise UserError(
            f"{where}: easyanimate.render.{rounded} does not go with {whole}, whose weights are rewritten in fp32 "
            "for each strength: set dtype to float32 and memory_mode to none or model_cpu_offload"
        )


def rounding_choice(dtype: str, memory_mode: str) -> str:
    """The choice of a render that would round, or can't rewrite, its denoiser's weights; empty where there is none.

    DoRA and a network trained in full are blended into the weights, W + w (W' - W): in 16 or 8 bits most of a small
    change is lost, and weights that are fetched layer by layer can't be written to.
    """
    if dtype != "float32":
        return f"dtype: {dtype}"
    return f"memory_mode: {memory_mode}" if memory_mode not in ("none", "model_cpu_offload") else ""


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
