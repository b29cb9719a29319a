"""How fast `encode` makes latent cells, against the VAE's forward alone on frames that are already in memory.

python benchmarks/encode.py [--rounds 5] [--bucket 192x128] [--base bases/tiny-framer]

On the demo's clips, in turn, each in a fresh interpreter: `stage` is the encode stage's own filling of an empty store
with the latents of every shot (frames read, checked and unpacked; cells packed, hashed, flushed to the disk); `vae` is
the VAE's encoder on the same frames in the same batches. Both are timed after the encoders were built and had one
batch to warm up. Prints frames a second, and the ratio, which is taken round by round.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from project import project, python, run_stages


def measure(what: str) -> dict[str, Any]:
    """Encode every shot of the working directory's project in this process."""
    import torch

    from framelora import files
    from framelora.cells.fill import Filling
    from framelora.cells.store import open_store
    from framelora.compute import configure_torch
    from framelora.params import load_params
    from stages.encode import Encoding, plan

    params, store = load_params(), open_store()
    shots = files.read_table(Path("data/frames.parquet")).set_index("shot")
    planned = plan(params, shots, {"train": [], "val": [], "test": []}, {}, configure_torch().type)
    cells = {unit: cell for unit, cell in planned.items() if unit.kind == "latents"}
    encoding = Encoding(params, store, shots, cells)

    def warm_up() -> float:
        encoding.encoder.encode(*first)
        return time.perf_counter()

    in_memory = {unit: encoding.read_frames(unit.shot) for unit in cells}
    count = sum(len(frames) for frames in in_memory.values())
    unit, frames = next(iter(in_memory.items()))
    first = (unit, frames[: params.family.encode.vae_batch])
    if what == "stage":
        in_memory.clear()

        def prepare(missing: list[Any]) -> None:
            nonlocal begin
            encoding.prepare(missing)
            begin = warm_up()

        begin = 0.0
        Filling(store, "encode").fill(list(cells.values()), encoding.compute, prepare, write_behind=True)
    else:
        encoding.prepare(list(cells.values()))
        vae, batch = encoding.encoder.vae, params.family.encode.vae_batch
        signed = [torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1.0 for clip in in_memory.values()]
        begin = warm_up()
        with torch.no_grad():
            for clip in signed:
                for part in clip.split(batch):
                    vae.encode(part)
    return {"rate": count / (time.perf_counter() - begin)}


def main(
    rounds: int = 5,
    bucket: str = "192x128",
    base: str = "bases/tiny-framer",
    one: Annotated[str, typer.Option("--measure", help="Measure `stage` or `vae` here, and print it as JSON.")] = "",
) -> None:
    """Measure and print."""
    if one:
        print(json.dumps(measure(one)))
        return
    rates: dict[str, list[float]] = {"vae": [], "stage": []}
    with project({"extract.buckets": [bucket], "model.base": base}) as folder:
        run_stages(folder, "captions", "extract")
        for number in range(rounds):
            # The order changes from round to round: what else the machine does then favours neither.
            for what in sorted(rates, reverse=number % 2 == 1):
                shutil.rmtree(folder / ".cells/encode", ignore_errors=True)
                printed = python(folder, str(Path(__file__).resolve()), "--measure", what)
                rates[what].append(json.loads(printed.splitlines()[-1])["rate"])
    ratios = [stage / vae for stage, vae in zip(rates["stage"], rates["vae"], strict=True)]
    stage, vae = (statistics.median(rates[what]) for what in ("stage", "vae"))
    print(f"{base} at {bucket}: encode {stage:.1f} frames/s, its VAE alone {vae:.1f} frames/s; medians of {rounds}")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    typer.run(main)
