"""Training on cached latents against encoding in every step, and against the denoiser and its optimizer alone.

python benchmarks/train_cached_vs_live.py [--rounds 5] [--steps 32] [--bucket 96x64] [--batch 2] [--base BASE]

Three loops on the demo's clips, in turn, each in a fresh interpreter: `cached` and `live` are the train stage's own
session under `train.latents`, with the same model, data and draws and no validation; `alone` is nothing but the
denoiser, its gradient, clipping and torch's AdamW on one batch of random tensors that are there before it begins. For
each: steps a second (median interval of a run, median of the rounds), CPU seconds a step (which other work on the
machine moves less), and the peak of resident memory (VmHWM), also less what the process had before a network was built.
Ratios are taken round by round.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from project import FEW_CLIPS, project, python, run_stages

LOOPS = ("alone", "cached", "live")
COLUMNS = (
    ("rate", "steps a second", 1, 3),
    ("cpu", "CPU seconds a step", 1, 3),
    ("peak", "peak memory, MiB", 2**20, 0),
    ("more", "peak memory above the start, MiB", 2**20, 0),
)
WARM_UP = 2  # steps that are not timed


def measure(loop: str, steps: int) -> dict[str, Any]:
    """Run a loop in this process, in the working directory's project."""
    import torch

    from framelora.cells.store import open_store
    from framelora.compute import configure_torch
    from framelora.memory import peak_resident
    from framelora.params import load_params
    from framelora.training.checkpoint import Checkpoints
    from framelora.training.items import Items
    from framelora.training.session import Session
    from stages.train import Run

    params = load_params()
    train = params.train.model_copy(
        update={"latents": "live" if loop == "live" else "cached", "max_train_steps": steps}
    )
    params = params.model_copy(update={"train": train})
    run = Run(params, open_store(), configure_torch().type)
    times: list[float] = []
    used: list[float] = []
    losses: list[float] = []

    class Timed(Session):
        """Notes when a batch is there, and its loss."""

        def loss(self, networks: Any, batch: Any, seeds: Any, levels: Any) -> torch.Tensor:
            value = super().loss(networks, batch, seeds, levels)
            if levels is None:
                times.append(time.perf_counter())
                used.append(time.process_time())
                losses.append(value.mean().item())
            return value

    with tempfile.TemporaryDirectory() as folder:
        session = Timed(params, run.family, run.base, Path(folder) / "logs")
        before = peak_resident()
        if loop == "alone":
            random_loop(session, run.items["train"], steps, times, used)
        else:
            nothing = Items([], [], run.items["train"].read)
            checkpoints = Checkpoints(Path(folder) / "state")
            session.train({"train": run.items["train"], "val": nothing}, checkpoints, None, {})
    seconds, cpu = (
        statistics.median(after - begin for begin, after in itertools.pairwise(clock[WARM_UP:]))
        for clock in (times, used)
    )
    peak = peak_resident()
    return {"rate": 1 / seconds, "cpu": cpu, "peak": peak, "more": peak - before, "losses": losses}


def random_loop(session: Any, items: Any, steps: int, times: list[float], used: list[float]) -> None:
    """The denoiser and its optimizer alone, on random tensors of the shapes that the objective calls it with."""
    import torch

    params, batch_size = session.params.train, session.params.train.train_batch_size
    networks = session.networks()
    networks.train()
    seeds = list(range(batch_size))
    calls: list[Any] = []
    hook = networks["unet"].register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        session.loss(networks, items.batch([0] * batch_size, seeds, torch.device("cpu")), seeds, [0.5] * batch_size)
    hook.remove()
    args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.randn_like, calls.pop())
    parameters = [parameter for parameter in networks.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=params.learning_rate)
    for _ in range(steps):
        value = networks["unet"](*args, **kwargs).sample.float().square().mean()
        times.append(time.perf_counter())
        used.append(time.process_time())
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, params.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def main(
    rounds: int = 5,
    steps: int = 32,
    bucket: str = "96x64",
    batch: int = 2,
    base: str = "bases/tiny-framer",
    one: Annotated[str, typer.Option("--measure", help="Measure one loop here, and print it as JSON.")] = "",
) -> None:
    """Measure and print."""
    if one:
        print(json.dumps(measure(one, steps)))
        return
    values = {"extract.buckets": [bucket], "model.base": base, "train.train_batch_size": batch}
    values["framer.conditioning.condition_noise"] = "bank"
    results: dict[str, list[dict[str, Any]]] = {loop: [] for loop in LOOPS}
    with project(values, FEW_CLIPS) as folder:
        run_stages(folder, "captions", "extract", "pair", "encode")
        for _ in range(rounds):
            for loop in LOOPS:
                printed = python(folder, str(Path(__file__).resolve()), "--measure", loop, "--steps", str(steps))
                results[loop].append(json.loads(printed.splitlines()[-1]))
    print(f"{base} at {bucket}, batches of {batch}, {steps} steps; medians (least to most) of {rounds} rounds")
    for name, title, scale, digits in COLUMNS:
        print(f"{title}:")
        for loop, runs in results.items():
            ratios = [run[name] / alone[name] for run, alone in zip(runs, results["alone"], strict=True)]
            value = statistics.median(run[name] for run in runs) / scale
            share = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of alone"
            print(f"  {loop:7}{value:10.{digits}f}   {'' if loop == 'alone' else share}".rstrip())
    cached, live = (results[loop][0]["losses"] for loop in ("cached", "live"))
    print(f"losses of cached and live differ by {max(abs(a / b - 1) for a, b in zip(cached, live, strict=True)):.1e}")


if __name__ == "__main__":
    typer.run(main)
