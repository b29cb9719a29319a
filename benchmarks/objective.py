"""The FramerTurbo guide's training objective against ours: same data, budget, base and draws, same test pairs.

python benchmarks/objective.py [--steps 30] [--learning-rate 5e-3] [--base bases/tiny-framer]

The guide trains a base of the EDM kind as if it were a DDPM (its `train_lora.py`): integer timesteps of a DDPM schedule
with SVD's betas, the noise as target, no preconditioning; condition latents that are posterior samples multiplied by
the scaling factor, where rendering takes the mode and does not multiply; CLIP embeddings of pictures without CLIP's
mean and standard deviation; a frame rate of fps where rendering tells fps - 1, a noise strength of 0 where it tells
0.02; nothing is ever dropped. That objective is written here and nowhere else. Its adapter is rendered and scored by
the pipeline's own stages, as ours is. Neither trainer's schedule, warm-up nor number of steps is the guide's: both are
params.yaml's. The guide's noise offset is left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from project import project, python, run_stages

SHOWN = (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("st_lpips", "ST-LPIPS"))
BETAS = (0.00085, 0.012, 1000)  # of SVD's scheduler: first, last, number; their roots are evenly spaced


def train_as_the_guide() -> None:
    """Train on the working directory's project with the guide's objective; the adapter goes where `render` reads it."""
    import torch
    from torch.nn import functional

    from framelora import files
    from framelora.cells.store import open_store
    from framelora.compute import configure_torch
    from framelora.digest import draw_seed
    from framelora.families.framer.codec import to_signed
    from framelora.families.framer.encode import Encoder
    from framelora.families.framer.loss import draw
    from framelora.families.framer.networks.unet import added_time_ids, bare_unet
    from framelora.families.framer.spec import read_spec
    from framelora.media.lossless import decode_frames
    from framelora.params import load_params
    from framelora.training.checkpoint import Checkpoints, read_files
    from framelora.training.items import Items
    from framelora.training.outs import adapter_folder
    from framelora.training.session import Session
    from stages.train import Run

    params, store, device = load_params(), open_store(), configure_torch()
    run = Run(params, store, device.type)
    encoder = Encoder(run.base, params.family, device)
    shots = run.shots()
    start, end, timesteps = BETAS
    alphas = (1 - torch.linspace(start**0.5, end**0.5, timesteps) ** 2).cumprod(0)
    scale = read_spec(run.base).scaling_factor

    @torch.no_grad()
    def embeds(shot: str, number: int) -> torch.Tensor:
        frame = decode_frames(store.read("extract/frames", shots.loc[shot].cell)[1])[[number]]
        side = encoder.image_encoder.config.image_size
        pixels = functional.interpolate(to_signed(frame), (side, side), mode="bicubic", antialias=True)
        embedding: torch.Tensor = encoder.image_encoder(pixels.to(device)).image_embeds[0].cpu()
        return embedding

    windows = run.windows["train"]
    unnormalised = {place: embeds(*place) for window in windows for place in window.ends}

    def read(number: int, seed: int) -> dict[str, torch.Tensor]:
        item = run.items["train"].read(number, seed)
        return item | {"image_embeds": torch.stack([unnormalised[place] for place in windows[number].ends])}

    class Guide(Session):
        """A session with the guide's objective."""

        def loss(self, networks: Any, batch: Any, seeds: Any, levels: Any) -> torch.Tensor:
            unet, shape, device = networks["unet"], batch["mean"].shape[1:], batch["mean"].device
            drawn = [draw(seed, shape, params.family) for seed in seeds]
            posterior, noise = (torch.stack([item[part] for item in drawn]).to(device) for part in (0, 1))
            steps = torch.tensor([draw_seed(seed, "guide") % timesteps for seed in seeds])
            kept = alphas[steps].to(device).view(-1, 1, 1, 1, 1)
            x0 = (batch["mean"] + batch["std"] * posterior) * scale
            condition = bare_unet(unet).condition(x0[:, 0], x0[:, -1], shape[0])
            told = params.family.conditioning
            prediction = unet(
                torch.cat([kept.sqrt() * x0 + (1 - kept).sqrt() * noise, condition], dim=2),
                steps.to(device),
                encoder_hidden_states=batch["image_embeds"],
                added_time_ids=added_time_ids(
                    len(seeds), told.fps + 1, told.motion_bucket_id, torch.zeros(len(seeds))
                ).to(device),
            ).sample
            return (prediction.float() - noise).square().mean(dim=(1, 2, 3, 4))

    with tempfile.TemporaryDirectory() as folder:
        items = {"train": Items(run.items["train"].ids, run.items["train"].shapes, read), "val": Items([], [], read)}
        state = Path(folder) / "state"
        Guide(params, run.family, run.base, Path(folder) / "logs").train(items, Checkpoints(state), None, {})
        files.replace_folder(Path("models/adapter"), adapter_folder(read_files(state / "final")))


def scores(folder: Path) -> dict[str, float]:
    """Render and score the project's adapter."""
    run_stages(folder, "render", "score")
    found: dict[str, float] = json.loads((folder / "reports/metrics.json").read_text())
    return found


def main(
    steps: int = 30,
    learning_rate: float = 5e-3,
    base: str = "bases/tiny-framer",
    guide: Annotated[bool, typer.Option(help="Train with the guide's objective in this project.")] = False,
) -> None:
    """Measure and print."""
    if guide:
        train_as_the_guide()
        return
    values = {
        "model.base": base,
        "train.max_train_steps": steps,
        "train.learning_rate": learning_rate,
        "train.validation_steps": steps,
        "train.checkpointing_steps": steps,
        "score.metrics": [name for name, _ in SHOWN],
        "extract.buckets": ["64x64"],
        "pair.stride": 5,
    }
    with project(values) as folder:
        run_stages(folder, "captions", "extract", "pair", "encode", "train")
        ours = scores(folder)
        python(folder, str(Path(__file__).resolve()), "--guide")
        theirs = scores(folder)
    print(f"{base}, {steps} steps, learning rate {learning_rate:g}, {ours['windows']} test windows")
    print("objective    " + "".join(f"{title:>12}" for _, title in SHOWN) + "   PSNR gain over the base, dB (95 %)")
    table = (("none (base)", ours, "base"), ("ours", ours, "adapter_1"), ("guide's", theirs, "adapter_1"))
    for name, found, method in table:
        line = f"{name:13}" + "".join(f"{found[f'{metric}_{method}']:12.4f}" for metric, _ in SHOWN)
        if method != "base":
            gain, low, high = (found[f"psnr_gain_{method}{part}"] for part in ("", "_low", "_high"))
            line += f"   {gain:+.3f} ({low:+.3f} to {high:+.3f})"
        print(line)


if __name__ == "__main__":
    typer.run(main)
