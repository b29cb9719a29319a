"""What a LoRA on the demo's training clips gains on its held-out clips, over the base: loss and expected frames.

    make bench-lora        (or `python benchmarks/lora.py --steps 400` after `make demo`, from the repository's root)

Trains with the project's own loop, parameters and cached latents; only the number of steps, the learning rate and the
law of the noise levels differ from `params.yaml`, as the options say. Then, on every held-out window (val and test):

* validation loss: the mean over `--draws` draws of noise, the same ones for base and adapter;
* expected frame: the network's estimate of the clean clip from noise at the sampler's first sigma, decoded. PSNR of the
  middle frames against the true ones.

Printed are the means of the paired differences with 95 % intervals that resample clips. Nothing is asserted.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from framelora import files
from framelora.adapters.lora import add_lora, set_weight
from framelora.cells.store import open_store
from framelora.compute import DTYPES, configure_torch
from framelora.dataset.tables import LatentsReader, read_windows
from framelora.digest import draw_seed
from framelora.evaluation.intervals import bootstrap_interval
from framelora.evaluation.metrics import psnr
from framelora.evaluation.totals import source_of
from framelora.families.base import Window
from framelora.families.framer import loss as framer
from framelora.families.framer.networks.unet import added_time_ids, bare_unet
from framelora.families.framer.render import Renderer, load_scheduler
from framelora.media.lossless import decode_frames
from framelora.params import load_params
from framelora.schema.framer import FramerConditioning
from framelora.training.checkpoint import Checkpoints
from framelora.training.loop import Items, train
from stages.train import items

SPLITS = ("train", "val", "test")


@torch.no_grad()
def expected_latents(
    model: torch.nn.Module, item: dict[str, torch.Tensor], sigma: float, conditioning: FramerConditioning, seed: int
) -> torch.Tensor:
    """The network's estimate of a window's clean latents from pure noise at `sigma`, scaled: `[F, C, h, w]`."""
    shape = item["mean"].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[None]
    condition = bare_unet(model).condition(item["first"][None], item["last"][None], shape[0])
    ids = added_time_ids(1, conditioning.fps, conditioning.motion_bucket_id, conditioning.noise_aug_strength)
    output = model(
        torch.cat([noise, condition], dim=2),  # noise of variance sigma^2 + 1, divided by its standard deviation
        torch.tensor([0.25 * float(np.log(sigma))]),
        encoder_hidden_states=item["image_embeds"][None],
        added_time_ids=ids,
    ).sample
    scale = (sigma**2 + 1) ** 0.5
    return (noise / scale - output * sigma / scale)[0]


def main(
    steps: int = 400,
    learning_rate: float = 2e-3,
    sigma_log_mean: Annotated[
        float, typer.Option(help="of training's noise levels; the loss is measured with it too")
    ] = 2.5,
    draws: int = 16,
    rank: int = 8,
    time_layers: Annotated[bool, typer.Option(help="adapt `time_emb_proj`, in every residual block, as well")] = True,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Train and compare."""
    device = configure_torch()
    params = load_params()
    if params.model.family != "framer":
        raise typer.BadParameter("the benchmark is Framer's: set model.family to framer")
    base, family = Path(params.model.base), params.family
    objective = family.objective.model_copy(update={"sigma_log_mean": sigma_log_mean})
    family = family.model_copy(update={"objective": objective})
    params = params.model_copy(
        update={
            "adapter": params.adapter.model_copy(update={"rank": rank, "alpha": float(rank)}),
            "train": params.train.model_copy(
                update={
                    "max_train_steps": steps,
                    "learning_rate": learning_rate,
                    "lr_scheduler": "cosine",
                    "validation_steps": steps,
                    "checkpointing_steps": steps,
                }
            ),
        }
    )
    store = open_store()
    windows = {split: read_windows(Path(f"data/pairs_{split}.parquet"), ["window"]) for split in SPLITS}
    latents = LatentsReader(store, [Path(f"data/latents_{split}.parquet") for split in SPLITS])
    held_out = windows["val"] + windows["test"]
    data = {
        name: items(framer, group, latents, params) for name, group in (("train", windows["train"]), ("held", held_out))
    }

    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], seeds: list[int]) -> torch.Tensor:
        return framer.loss(model, batch, seeds, base, family)

    denoiser = framer.load_denoiser(base, DTYPES["float32"])
    targets = [*framer.lora_targets(denoiser), *(["time_emb_proj"] if time_layers else [])]
    model = add_lora(denoiser, params.adapter, targets, params.train.seed)
    with tempfile.TemporaryDirectory() as state:
        train(model, data["train"], Items([], [], data["held"].read), loss, params.train, Checkpoints(Path(state)))
    model.eval()
    renderer = Renderer(base, family, device)
    shots = files.read_table(Path("data/frames.parquet")).set_index("shot")
    sigma = float(load_scheduler(base).config.sigma_max)

    def truth(window: Window) -> np.ndarray:
        frames = decode_frames(store.read("extract/frames", shots.loc[window.start_shot].cell)[1])
        return frames[window.start_frame : window.end_frame + 1][1:-1]

    measured: dict[str, dict[float, list[float]]] = {"loss": {0.0: [], 1.0: []}, "psnr": {0.0: [], 1.0: []}}
    for weight in (0.0, 1.0):
        set_weight(model, weight)
        for number, window in enumerate(held_out):
            seeds = [draw_seed(params.train.seed, "bench", window.pair, draw) for draw in range(draws)]
            with torch.no_grad():
                values = loss(model, data["held"].batch([number] * draws, device), seeds)
            measured["loss"][weight].append(float(values.mean()))
            item = data["held"].read(number)
            estimate = expected_latents(model, item, sigma, family.conditioning, seeds[0])
            frames = renderer.decode(estimate / renderer.vae.config.scaling_factor)[1:-1]
            measured["psnr"][weight].append(float(psnr(frames, truth(window)).mean()))

    sources = [source_of(window.pair) for window in held_out]
    said = {"windows": len(held_out), "clips": len(set(sources)), "steps": steps, "learning_rate": learning_rate}
    trained = f"{steps} steps at {learning_rate:g}, rank {rank}, ln sigma about {sigma_log_mean:g}"
    print(f"{len(held_out)} held-out windows of {len(set(sources))} clips; {trained}")
    for name, sign in (("loss", -1.0), ("psnr", 1.0)):
        before, after = (np.asarray(measured[name][weight]) for weight in (0.0, 1.0))
        gains = sign * (after - before)
        low, high = bootstrap_interval(gains, sources, samples=4000, seed=0)
        said[name] = [float(before.mean()), float(after.mean()), float(gains.mean()), low, high]
        what = "validation loss, drop" if name == "loss" else "expected frame, gain in dB"
        share = f" ({100 * gains.mean() / before.mean():.1f} %)" if name == "loss" else ""
        change = f"{before.mean():.4f} -> {after.mean():.4f}  {gains.mean():+.4f}"
        print(f"  {what:27s} {change} [{low:+.4f}, {high:+.4f}]{share}")
    if out:
        out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
