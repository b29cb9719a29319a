"""Write one offline page that a person can judge the run from.

Reads reports/metrics.json, reports/{plots,train,captions,extract}/, data/{renders,frames,sources,captions}.parquet,
data/pairs_{train,val,test}.parquet, params.yaml and the base model's lock. Writes reports/index.html, which links to
the videos in reports/render/, the pictures of the sources in reports/thumbnails/, and beside them reports/run.js, which
is no out: the commit and what the stages cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd
import typer

from framelora import files
from framelora.cells.fill import Computed, Filling, ensure
from framelora.cells.store import Cell, Store, open_store
from framelora.console import UserError, command, relative, say
from framelora.media.thumbnail import thumbnail
from framelora.params import Model, Params, load_params
from framelora.report.page import Tables, build_page
from framelora.report.run import page_digest, read_commit, read_costs, run_script
from framelora.source import source_digest
from framelora.versions import versions

REPORTS = Path("reports")
DATA = Path("data")
TEXTS = ("pair", "kind", "method", "metric", "unit", "better", "which", "path", "reason")  # columns of text tables


def main() -> None:
    """Build the page."""
    params = load_params()
    store = open_store()
    pictures = thumbnails(store)
    page = build_page(read_tables(params, {content_id: f"thumbnails/{content_id}.jpg" for content_id in pictures}))
    files.replace_folder(REPORTS / "thumbnails", {f"{name}.jpg": picture for name, picture in pictures.items()})
    costs = read_costs(store.root / "journal.jsonl")
    files.write_text(REPORTS / "index.html", page)
    files.write_text(REPORTS / "run.js", run_script(page_digest(page), read_commit(Path()), costs))
    say(f"report: {REPORTS / 'index.html'}")


def thumbnails(store: Store) -> dict[str, bytes]:
    """A small JPEG of each source by its content id: the middle of its first shot, or the start of an image pair.

    They are cells: a new clip decodes that clip only.
    """
    shots = files.read_table(DATA / "frames.parquet")
    shots = shots[~shots.shot.str.endswith("-end")]
    firsts = shots.sort_values("shot").groupby("content_id").first().reset_index()
    code = source_digest("framelora.media.thumbnail")
    used = versions("av", "pillow")
    planned = [
        Cell("report/thumbnail", row.content_id, {"frames": row.digest, "code": code, "versions": used})
        for row in firsts.itertuples()
    ]
    row_of = {cell.key: row for cell, row in zip(planned, firsts.itertuples(), strict=True)}

    def compute(cell: Cell) -> Computed:
        yield cell, thumbnail(store.read("extract/frames", row_of[cell.key].cell)[1]), {}

    filling = Filling(store, "report")
    filling.fill(
        planned,
        compute,
        lambda missing: ensure(store, "extract/frames", [row_of[cell.key].cell for cell in missing], "stages.extract"),
    )
    filling.close()
    return {cell.unit: store.read(cell.kind, cell.key)[1] for cell in planned}


def read_tables(params: Params, pictures: dict[str, str]) -> Tables:
    """Everything the page shows. The sections of other model families are no part of the run."""
    others = set(get_args(Model.model_fields["family"].annotation)) - {params.model.family}
    validation = REPORTS / "train/validation.tsv"
    return Tables(
        params=params.model_dump(exclude=others),
        metrics=files.read_json(REPORTS / "metrics.json"),
        methods=read_csv(REPORTS / "plots/methods.csv"),
        samples=read_csv(REPORTS / "plots/samples.csv"),
        totals=read_csv(REPORTS / "plots/totals.csv"),
        extremes=read_csv(REPORTS / "plots/extremes.csv"),
        notes=files.read_json(REPORTS / "plots/notes.json"),
        renders=files.read_table(DATA / "renders.parquet"),
        loss=read_csv(REPORTS / "train/loss.tsv"),
        validation=read_csv(validation) if validation.is_file() else None,
        run=files.read_json(REPORTS / "train/run.json"),
        issues=files.read_json(REPORTS / "captions/issues.json"),
        skipped=read_csv(REPORTS / "extract/skipped.csv"),
        sources=files.read_table(DATA / "sources.parquet"),
        captions=files.read_table(DATA / "captions.parquet"),
        pairs={split: files.read_table(DATA / f"pairs_{split}.parquet") for split in ("train", "val", "test")},
        base=files.read_json(Path(params.model.base) / "base.lock.json"),
        thumbnails=pictures,
    )


def read_csv(path: Path) -> pd.DataFrame:
    """Read a text table; only an empty cell is a missing value, so that no name reads as one."""
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        table = pd.read_csv(path, sep=separator, keep_default_na=False, dtype=str)
    except FileNotFoundError:
        raise UserError(f"{relative(path)} is missing: run `dvc repro`, which makes it") from None
    return table.apply(lambda column: column if column.name in TEXTS else pd.to_numeric(column))


if __name__ == "__main__":
    typer.run(command(main))
