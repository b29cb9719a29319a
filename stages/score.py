"""Score the renders against the truth, on the lossless frames: the metrics of docs/metrics.md.

Reads data/renders.parquet, and the networks that `score.*_weights` name. Writes reports/metrics.json (totals),
data/scores.parquet (an index: the scores of a sample are a cell, and those of each network another) and reports/plots/:
samples.csv (a row a sample and method), methods.csv (means), totals.csv (means, and improvements over the base with
their intervals), extremes.csv (best and worst samples), notes.json (what could not be measured, and why).
"""

from __future__ import annotations

import functools
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
from framelora.evaluation.catalogue import ENDS, PER_SAMPLE, PER_SET
from framelora.evaluation.limits import FEWEST, SMALLEST_SIDE
from framelora.evaluation.totals import columns_of, extremes, flat_metrics, total_table
from framelora.files import column, file_digest
from framelora.media.lossless import decode_frames
from framelora.params import load_params
from framelora.schema.output import Score
from framelora.source import source_digest
from framelora.versions import versions

SCORE_SCHEMA = pa.schema(
    [
        column("pair", pa.string(), "id of the window or image pair"),
        column("method", pa.string(), "the method that is compared with the truth"),
        column("cell_kind", pa.string(), "score/sample, or score/network for a metric whose weights are given by path"),
        column("cell", pa.string(), "key of the cell that holds the values"),
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
        self.names = [name for name in params.metrics if not PER_SAMPLE[name].needs_weights]
        self.shared = {
            "metrics": self.names,
            "device": configure_torch().type,
            "code": source_digest("framelora.evaluation.measures"),
            "packing": source_digest("framelora.media.lossless"),
            "versions": versions(*PACKAGES),
        }

    def names_of(self, row: Any) -> list[str]:
        """The metrics of a row: of the truth itself, those that look at a clip alone."""
        return [name for name in self.names if row.method != "truth" or PER_SAMPLE[name].alone]

    def cell(self, row: Any) -> Cell:
        """The cell of a row of the index."""
        of_truth = {"metrics": self.names_of(row), "kind": "truth"} if row.method == "truth" else {"kind": row.kind}
        inputs = {"frames": row.digest, "truth": self.truths.loc[row.pair].digest, **self.shared, **of_truth}
        return Cell("score/sample", row.pair, inputs)

    def prepare(self) -> None:
        """See that the rendered frames are there."""
        for kind, cells in self.index.groupby("cell_kind"):
            ensure(self.store, str(kind), cells.cell, "stages.render")

    def compute(self, row: Any) -> bytes:
        """Measure a sample; its values as JSON."""
        from framelora.evaluation.measures import measure

        truth = self.truths.loc[row.pair]
        found = measure(
            self.frames(row.cell_kind, row.cell),
            self.frames(truth.cell_kind, truth.cell),
            self.names_of(row),
            middles=row.kind == "window",
        )
        if row.method == "truth":  # its ends are its ends
            del found[ENDS.name]
        return canonical_json(found).encode()

    def frames(self, kind: str, key: str) -> Any:
        """Rendered frames, `[F, H, W, 3]`."""
        return decode_frames(self.store.read(kind, key)[1])


class NetworkScoring:
    """Plans and computes a metric of `vbench`, whose network is given by path: a cell a sample and method."""

    def __init__(self, name: str, path: Path, fps: float, scoring: Scoring) -> None:
        self.name = name
        self.path = path
        self.fps = fps
        self.scoring = scoring
        self.shared = {
            "metric": name,
            "weights": weights_digest(path),
            "fps": fps if name == "dynamic_degree" else None,
            "device": configure_torch().type,
            "code": source_digest("framelora.evaluation.vbench"),
            "packing": source_digest("framelora.media.lossless"),
            "versions": versions("numpy", "torch", "transformers"),
        }

    def names_of(self, _row: Any) -> list[str]:
        """The metrics of a row: this one looks at a clip alone."""
        return [self.name]

    def cell(self, row: Any) -> Cell:
        """The cell of a row of the index."""
        return Cell("score/network", row.pair, {"frames": row.digest, **self.shared})

    @functools.cached_property
    def measure(self) -> Any:
        """The metric, its network loaded."""
        from framelora.evaluation.vbench import BY_WEIGHTS

        return BY_WEIGHTS[self.name](self.path, configure_torch(), self.fps)

    def compute(self, row: Any) -> bytes:
        """Measure a sample; its value as JSON."""
        from framelora.evaluation.vbench import WrongNetwork

        try:
            value = self.measure(self.scoring.frames(row.cell_kind, row.cell))
        except WrongNetwork as error:
            raise UserError(f"score.{self.name}_weights: {error}") from None
        return canonical_json({self.name: value}).encode()


def main() -> None:
    """Write metrics per sample and in total."""
    params = load_params()
    store = open_store()
    index = files.read_table(Path("data/renders.parquet"))
    scoring = Scoring(params.score, store, index)
    given, missing = given_networks(params.score)
    networks = [NetworkScoring(name, path, params.extract.fps, scoring) for name, path in given.items()]
    work: list[tuple[Any, Cell, Scoring | NetworkScoring]] = [
        (row, measures.cell(row), measures)
        for row in index.itertuples()
        for measures in (scoring, *(networks if row.kind == "window" else ()))
        if row.method != "truth" or (row.kind == "window" and measures.names_of(row))
    ]
    work_of = {cell.key: (row, measures) for row, cell, measures in work}

    def compute(cell: Cell) -> Computed:
        row, measures = work_of[cell.key]
        yield cell, measures.compute(row), {}

    filling = Filling(store, "score")
    # One metric after the other, so that a network is loaded once and in no other's way.
    for measures in (scoring, *networks):
        planned = [cell for _, cell, own in work if own is measures]
        filling.fill(planned, compute, lambda _: scoring.prepare())
    filling.close()
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row, cell, _ in work:
        values = found.setdefault((row.pair, row.kind, row.method), {})
        values |= json.loads(store.read(cell.kind, cell.key)[1])
    start = ("pair", "kind", "method")
    samples = pd.DataFrame([{**dict(zip(start, name, strict=True)), **values} for name, values in found.items()])
    samples = samples.reindex(columns=[*start, *(name for name, _ in columns_of(params.score.metrics))])
    sets, notes = score_sets(scoring, index)
    publish(
        params.score, samples, sets, {**too_small(samples, scoring.names), **missing, **notes, **pseudo_note(index)}
    )
    keys = [{"pair": row.pair, "method": row.method, "cell_kind": cell.kind, "cell": cell.key} for row, cell, _ in work]
    files.write_table(Path("data/scores.parquet"), keys, SCORE_SCHEMA)


def given_networks(params: Score) -> tuple[dict[str, Path], dict[str, str]]:
    """The path of each network that a named metric needs, and a note for each that is not given."""
    weights = {
        "subject_consistency": params.subject_consistency_weights,
        "background_consistency": params.background_consistency_weights,
        "motion_smoothness": params.motion_smoothness_weights,
        "dynamic_degree": params.dynamic_degree_weights,
    }
    paths: dict[str, Path] = {}
    notes: dict[str, str] = {}
    for name, path in weights.items():
        if name not in params.metrics:
            continue
        key = f"score.{name}_weights"
        if path is None:
            notes[name] = f"needs weights: {key}"
        elif not Path(path).exists():
            raise UserError(f"{key}: {path} does not exist: docs/metrics.md says what to put there; null leaves it out")
        else:
            paths[name] = Path(path)
    return paths, notes


def weights_digest(path: Path) -> dict[str, str]:
    """Digests of what makes a network: one file, or those of a folder."""
    parts = [path] if path.is_file() else [part for part in path.iterdir() if part.suffix in (".json", ".safetensors")]
    return {part.name: file_digest(part) for part in sorted(parts)}


def too_small(samples: pd.DataFrame, names: Iterable[str]) -> dict[str, str]:
    """Metrics that some windows are too small for, with the reason."""
    windows = samples[(samples.kind == "window") & (samples.method != "truth")]
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
