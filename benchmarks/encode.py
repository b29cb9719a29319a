"""How fast `encode` makes latent cells, against the VAE's forward alone on frames that are already in memory.

python benchmarks/encode.py [--rounds 5] [--bucket 192x128] [--base bases/tiny-framer]

On four of the demo's clips, in turn, each in a fresh interpreter: `stage` is the encode stage's own filling of an
empty store with the latents of every shot (frames read, checked and unpacked; cells packed, hashed, flushed to the
disk); `in order` is the same without reading ahead and writing behind; `vae` is the VAE's encoder on the same frames in
the same batches. All are timed after the encoders were built and had one batch to warm up. Prints frames a second, and
their ratio to `vae`, which is taken round by round.
"""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from project import FEW_CLIPS, project, python, run_stages


def measure(what: str) -> dict[str, Any]:
    """Encode every shot of the working directory's project in this process."""
    import torch

    from framelora.cells.fill import Filling
    from framelora.cells.store import open_store
    from framelora.compute import configure_torch
    from framelora.dataset.tables import read_given_tracks, read_shots
    from framelora.params import load_params
    from stages.encode import Encoding, plan

    params, store = load_params(), open_store()
    shots = read_shots()
    nothing: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    planned = plan(params, shots, nothing, {}, read_given_tracks(), configure_torch().type)
    cells = {unit: cell for unit, cell in planned.items() if unit.kind == "latents"}
    encoding = Encoding(params, store, shots, cells)

    def warm_up() -> float:
        encoding.encoder.encode(*first)
        return time.perf_counter()

    in_memory = {unit: encoding.read_frames(unit.shot) for unit in cells}
    count = sum(len(frames) for frames in in_memory.values())
    unit, frames = next(iter(in_memory.items()))
    first = (unit, frames[: params.family.encode.vae_batch])
    if what != "vae":
        in_memory.clear()

        def prepare(missing: list[Any]) -> None:
            nonlocal begin
            encoding.prepare(missing)
            if what == "in order":
                encoding.frames.get = functools.lru_cache(maxsize=1)(encoding.read_frames)  # type: ignore[method-assign]
            begin = warm_up()

        begin = 0.0
        Filling(store, "encode").fill(list(cells.values()), encoding.compute, prepare, write_behind=what == "stage")
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
    one: Annotated[
        str, typer.Option("--measure", help="Measure `vae`, `in order` or `stage` here, and print it as JSON.")
    ] = "",
) -> None:
    """Measure and print."""
    if one:
        print(json.dumps(measure(one)))
        return
    rates: dict[str, list[float]] = {"vae": [], "in order": [], "stage": []}
    with project({"extract.buckets": [bucket], "model.base": base}, FEW_CLIPS) as folder:
        run_stages(folder, "captions", "extract", "pair")
        for number in range(rounds):
            # The order changes from round to round: what else the machine does then favours neither.
            for what in sorted(rates, reverse=number % 2 == 1):
                shutil.rmtree(folder / ".cells/encode", ignore_errors=True)
                printed = python(folder, str(Path(__file__).resolve()), "--measure", what)
                rates[what].append(json.loads(printed.splitlines()[-1])["rate"])
    print(f"{base} at {bucket}; medians (least to most) of {rounds} rounds, frames a second")
    for what, found in rates.items():
        ratios = [rate / vae for rate, vae in zip(found, rates["vae"], strict=True)]
        share = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of vae"
        print(f"  {what:9}{statistics.median(found):8.1f}   {'' if what == 'vae' else share}".rstrip())


if __name__ == "__main__":
    typer.run(main)
