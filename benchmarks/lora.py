"""What an adapter learns on the demo's clips in a few minutes: its gain on clips that it never saw.

    make bench-lora        (it runs the pipeline up to the latents, then `python -m benchmarks.lora`)

Trains with the parameters of params.yaml but more steps, on the cached latents of the training windows. Then, on all
validation and test windows, which no training sees:

* the drop of the validation loss: base minus adapter, with the same noise, as a share of the base's;
* the gain of the expected frame: PSNR of the middle frames of a one-step sample (at the highest noise level the network
  estimates the mean of what may lie between the ends), adapter minus base, with the same noise.

Both with 95 % intervals from resampled clips. Exits with 1 when one of the intervals is not above zero.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from framelora import files
from framelora.adapters.lora import load_adapter, set_weight
from framelora.cells.fill import ensure
from framelora.cells.store import open_store
from framelora.compute import configure_torch
from framelora.dataset.tables import LatentsReader, read_windows
from framelora.digest import draw_seed
from framelora.evaluation.baselines import blend
from framelora.evaluation.intervals import bootstrap_interval
from framelora.evaluation.metrics import psnr
from framelora.families.base import Window
from framelora.media.lossless import decode_frames
from framelora.params import Params, load_params
from framelora.source import load_part
from framelora.training.checkpoint import Checkpoints, read_files
from framelora.training.outs import adapter_folder
from stages.train import Run

LEVELS = 4  # shares of the noise levels, with one draw of noise in each, for every window's loss
HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Gains:
    """What was measured, a value a window: `[N]` each."""

    sources: list[str]
    base_loss: NDArray[np.float64]
    loss: NDArray[np.float64]
    base_psnr: NDArray[np.float64]
    psnr: NDArray[np.float64]
    blend_psnr: NDArray[np.float64]


def with_steps(params: Params, steps: int) -> Params:
    """The parameters for a training of `steps` steps, whose learning rate ends at zero, measured at its ends only."""
    changes = {
        "num_train_epochs": None, "max_train_steps": steps, "lr_scheduler": "cosine", "lr_warmup_steps": steps // 20,
        "checkpointing_steps": steps, "validation_steps": steps,
    }  # fmt: skip
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def train_adapter(run: Run, folder: Path) -> Path:
    """Train as the stage does and write the adapter to `folder/adapter`."""
    for reader in run.latents.values():
        for kind, keys in reader.by_kind().items():
            ensure(run.store, kind, keys, "stages.encode")
    run.train(Checkpoints(folder / "state"))
    files.replace_folder(folder / "adapter", adapter_folder(read_files(folder / "state/final")))
    return folder / "adapter"


def window_loss(run: Run, model: torch.nn.Module, window: Window, read: Any) -> float:
    """Mean loss of a window over the shares of the noise levels, with fixed noise."""
    seeds = [draw_seed(run.params.train.seed, "bench", window.pair, level) for level in range(LEVELS)]
    items = [run.family.read_window(window, read, run.base, run.params.family, seed) for seed in seeds]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    levels = [(level + seed % 2**32 / 2**32) / LEVELS for level, seed in enumerate(seeds)]
    with torch.no_grad():
        return float(run.family.loss(model, batch, seeds, run.base, run.params.family, levels=levels).mean())


def measure(run: Run, adapter: Path, device: torch.device) -> Gains:
    """Base and adapter on the held-out windows."""
    renderer = load_part(run.params.model.family, "render").Renderer(run.base, run.params.family, device)
    model = load_adapter(renderer.load_denoiser(), adapter)
    shots = files.read_table(Path("data/frames.parquet")).set_index("shot")
    sources: list[str] = []
    rows: list[list[float]] = []
    for split in HELD_OUT:
        read = LatentsReader(run.store, [Path(f"data/latents_{split}.parquet")]).read
        for window in read_windows(Path(f"data/pairs_{split}.parquet"), ["window"]):
            shot = decode_frames(run.store.read("extract/frames", shots.loc[window.start_shot].cell)[1])
            truth = shot[window.start_frame : window.end_frame + 1]
            seed = draw_seed(run.params.render.seed, "bench", window.pair)
            both = []
            for weight in (0.0, 1.0):
                set_weight(model, weight)
                frames = renderer.sample(model, window, read, num_inference_steps=1, seed=seed)
                both.append((window_loss(run, model, window, read), middle_psnr(frames, truth)))
            (base_loss, base_psnr), (loss, gained) = both
            mixed = middle_psnr(blend(truth[0], truth[-1], len(truth)), truth)
            sources.append(window.content_id)
            rows.append([base_loss, loss, base_psnr, gained, mixed])
    return Gains(sources, *np.asarray(rows).T)


def middle_psnr(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Mean PSNR of the frames between the ends, in dB."""
    return float(psnr(frames, truth)[1:-1].mean())


def verdict(gains: Gains, samples: int = 4000) -> tuple[list[str], bool]:
    """What to print, and whether both intervals lie above zero."""
    drop = gains.base_loss - gains.loss
    gain = gains.psnr - gains.base_psnr
    drop_low, drop_high = bootstrap_interval(drop, gains.sources, samples=samples, seed=0)
    gain_low, gain_high = bootstrap_interval(gain, gains.sources, samples=samples, seed=0)
    base, better = gains.base_loss.mean(), (gain > 0).sum()
    lines = [
        f"{len(drop)} held-out windows of {len(set(gains.sources))} clips",
        f"validation loss {base:.4f} -> {gains.loss.mean():.4f}, lower on {(drop > 0).sum()} windows",
        f"  drop {100 * drop.mean() / base:.2f} % [{100 * drop_low / base:.2f}, {100 * drop_high / base:.2f}]",
        f"expected frame {gains.base_psnr.mean():.2f} -> {gains.psnr.mean():.2f} dB, higher on {better} windows",
        f"  gain {gain.mean():+.3f} dB [{gain_low:+.3f}, {gain_high:+.3f}]",
        f"linear blend {gains.blend_psnr.mean():.2f} dB",
    ]
    return lines, drop_low > 0 and gain_low > 0


def main(steps: int = 80) -> None:
    """Train, measure, print; aims: a drop of 10 % and a gain of 0.5 dB."""
    params = with_steps(load_params(), steps)
    device = configure_torch()
    run = Run(params, open_store(), device.type)
    with tempfile.TemporaryDirectory() as folder:
        gains = measure(run, train_adapter(run, Path(folder)), device)
    lines, holds = verdict(gains)
    print(f"LoRA of rank {params.adapter.rank}, {steps} steps", *lines, sep="\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    typer.run(main)
