"""Score the renders against the truth, on the lossless frames: the metrics of docs/metrics.md.

Reads data/renders.parquet. Writes reports/metrics.json (totals), data/scores.parquet (an index: the scores of a sample
are a cell) and reports/plots/: samples.csv (a row a sample and method), methods.csv (means), totals.csv (means, and
improvements over the base with their intervals), extremes.csv (best and worst samples), notes.json (what could not be
measured, and why).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import typer

from framelora import files
from framelora.cells.fill import Computed, Filling, ensure
from framelora.cells.store import Cell, Store, open_store
from framelora.compute import configure_torch
from framelora.console import UserError, command, say
from framelora.digest import canonical_json
from framelora.evaluation.catalogue import PER_SAMPLE, PER_SET
from framelora.evaluation.limits import FEWEST, SMALLEST_SIDE
from framelora.evaluation.totals import columns_of, extremes, flat_metrics, total_table
from framelora.files import column
from framelora.media.lossless import decode_frames
from framelora.params import load_params
from framelora.schema.output import Score
from framelora.source import source_digest
from framelora.versions import versions

SCORE_SCHEMA = pa.schema(
    [
        column("pair", pa.string(), "id of the window or image pair"),
        column("method", pa.string(), "the method that is compared with the truth"),
        column("cell", pa.string(), "key of the cell (kind score/sample) that holds the values"),
    ]
)
PACKAGES = ("imageio-ffmpeg", "numpy", "opencv-python-headless", "stlpips-pytorch", "torch", "torchmetrics")


class Scoring:
    """Plans and computes the scores of samples: a cell a sample and method."""

    def __init__(self, params: Score, store: Store, index: pd.DataFrame) -> None:
        self.params = params
        self.store = store
        self.index = index
        self.truths = index[index.method == "truth"].set_index("pair")
        self.shared = {
            "metrics": list(params.metrics),
            "device": configure_torch().type,
            "code": source_digest("framelora.evaluation.measures"),
            "packing": source_digest("framelora.media.lossless"),
            "versions": versions(*PACKAGES),
        }

    def cell(self, row: Any) -> Cell:
        """The cell of a row of the index."""
        inputs = {"frames": row.digest, "truth": self.truths.loc[row.pair].digest, "kind": row.kind, **self.shared}
        return Cell("score/sample", row.pair, inputs)

    def prepare(self) -> None:
        """See that the rendered frames are there."""
        for kind, cells in self.index.groupby("cell_kind"):
            ensure(self.store, str(kind), cells.cell, "stages.render")

    def compute(self, row: Any) -> bytes:
        """Measure a sample; its values as JSON."""
        from framelora.evaluation.measures import measure

        truth = self.truths.loc[row.pair]
        return canonical_json(
            measure(
                self.frames(row.cell_kind, row.cell),
                self.frames(truth.cell_kind, truth.cell),
                self.params.metrics,
                middles=row.kind == "window",
            )
        ).encode()

    def frames(self, kind: str, key: str) -> Any:
        """Rendered frames, `[F, H, W, 3]`."""
        return decode_frames(self.store.read(kind, key)[1])


def main() -> None:
    """Write metrics per sample and in total."""
    params = load_params().score
    store = open_store()
    index = files.read_table(Path("data/renders.parquet"))
    scoring = Scoring(params, store, index)
    rows = list(index[index.method != "truth"].itertuples())
    planned = [scoring.cell(row) for row in rows]
    row_of = {cell.key: row for cell, row in zip(planned, rows, strict=True)}

    def compute(cell: Cell) -> Computed:
        yield cell, scoring.compute(row_of[cell.key]), {}

    filling = Filling(store, "score")
    filling.fill(planned, compute, lambda _: scoring.prepare())
    filling.close()
    values = [json.loads(store.read(cell.kind, cell.key)[1]) for cell in planned]
    names = [{"pair": row.pair, "kind": row.kind, "method": row.method} for row in rows]
    samples = pd.DataFrame([{**name, **value} for name, value in zip(names, values, strict=True)])
    samples = samples.reindex(columns=["pair", "kind", "method", *(name for name, _ in columns_of(params.metrics))])
    sets, notes = score_sets(scoring, index)
    publish(params, samples, sets, {**too_small(samples, params.metrics), **notes, **pseudo_note(index)})
    keys = [{"pair": row.pair, "method": row.method, "cell": cell.key} for row, cell in zip(rows, planned, strict=True)]
    files.write_table(Path("data/scores.parquet"), keys, SCORE_SCHEMA)


def too_small(samples: pd.DataFrame, names: Iterable[str]) -> dict[str, str]:
    """Metrics that some windows are too small for, with the reason."""
    windows = samples[samples.kind == "window"]
    notes = {}
    for name in names:
        missing, pairs = windows[windows[name].isna()].pair.nunique(), windows.pair.nunique()
        if missing:
            which = "frames" if missing == pairs else f"frames of {missing} of {pairs} windows"
            notes[name] = f"{which} are below {SMALLEST_SIDE[name]} pixels on a side"
    return notes


def pseudo_note(index: pd.DataFrame) -> dict[str, str]:
    """What to know of the adapter where it learned from made middles."""
    methods = sorted(set(index.pseudo) - {""})
    text = f"the adapter learned from middles made by {', '.join(methods)}; true frames are what it is scored by"
    return {"pseudo_middles": text} if methods else {}


def score_sets(scoring: Scoring, index: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """FID and FVD of each method, and why there are none."""
    windows = index[index.kind == "window"]
    counts = {"fid": int(middles(scoring, windows)), "fvd": int(windows.pair.nunique())}
    paths = {"fid": scoring.params.fid_weights, "fvd": scoring.params.fvd_weights}
    rows: list[dict[str, Any]] = []
    notes = {}
    for name, metric in PER_SET.items():
        path = paths[name]
        if path is None:
            notes[name] = f"needs weights: score.{name}_weights"
        elif counts[name] < FEWEST[name]:
            notes[name] = f"refused: {counts[name]} samples, at least {FEWEST[name]} are needed"
        elif not Path(path).is_file():
            raise UserError(
                f"score.{name}_weights: {path} does not exist: give the path of a TorchScript file, or null"
            )
        else:
            from framelora.evaluation.frechet import Extractor, frechet_distance

            extractor = Extractor(name, Path(path), configure_torch())
            features = {
                method: extractor.features(scoring.frames(row.cell_kind, row.cell) for row in group.itertuples())
                for method, group in windows.sort_values("pair").groupby("method")
            }
            for method in sorted(set(features) - {"truth"}):
                distance = frechet_distance(features[method], features["truth"])
                row = {"metric": name, "method": method, "mean": distance, "samples": counts[name]}
                rows.append({**row, "unit": metric.unit, "better": metric.better})
    return rows, notes


def middles(scoring: Scoring, windows: pd.DataFrame) -> int:
    """The number of middle frames of the windows' truth."""
    if scoring.params.fid_weights is None:
        return 0
    truths = windows[windows.method == "truth"]
    return sum(len(scoring.frames(row.cell_kind, row.cell)) - 2 for row in truths.itertuples())


def publish(params: Score, samples: pd.DataFrame, sets: list[dict[str, Any]], notes: dict[str, str]) -> None:
    """Write the tables and the totals."""
    totals = total_table(samples, params.metrics, bootstrap=params.bootstrap_samples, seed=params.seed)
    if sets:
        totals = pd.concat([totals, pd.DataFrame(sets)], ignore_index=True)
    methods = totals.pivot(index="method", columns="metric", values="mean")
    methods = methods.reindex(columns=[name for name in [*samples.columns[3:], *PER_SET] if name in methods])
    text = {"index": False, "float_format": "%.5f"}
    files.replace_folder(
        Path("reports/plots"),
        {
            "samples.csv": samples.to_csv(**text).encode(),
            "methods.csv": methods.reset_index().to_csv(**text).encode(),
            "totals.csv": totals.to_csv(**text).encode(),
            "extremes.csv": extremes(samples).to_csv(**text).encode(),
            "notes.json": (json.dumps(notes, sort_keys=True, indent=2) + "\n").encode(),
        },
    )
    files.write_json(Path("reports/metrics.json"), flat_metrics(samples, totals))
    shown = [name for name in (*PER_SAMPLE, "ends_psnr") if name in methods]
    say(methods[shown].to_string(float_format="%.3f", na_rep="-"))
    for name, note in sorted(notes.items()):
        say(f"{name}: {note}")


if __name__ == "__main__":
    typer.run(command(main))
