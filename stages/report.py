"""Write one offline page that a person can judge the run from.

Reads reports/metrics.json, reports/plots/, reports/train/, reports/captions/, reports/extract/, data/renders.parquet,
data/sources.parquet, data/captions.parquet, data/pairs_{train,val,test}.parquet, params.yaml and the base model's lock.
Writes reports/index.html, which links to the videos in reports/render/, and beside it reports/run.js, which is no out:
the commit and what the stages cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd
import typer

from framelora import files
from framelora.cells.store import open_store
from framelora.console import UserError, command, relative, say
from framelora.params import Model, Params, load_params
from framelora.report.page import Tables, build_page
from framelora.report.run import page_digest, read_commit, read_costs, run_script

REPORTS = Path("reports")
DATA = Path("data")


def main() -> None:
    """Build the page."""
    params = load_params()
    page = build_page(read_tables(params))
    costs = read_costs(open_store().root / "journal.jsonl")
    files.write_text(REPORTS / "index.html", page)
    files.write_text(REPORTS / "run.js", run_script(page_digest(page), read_commit(Path()), costs))
    say(f"report: {REPORTS / 'index.html'}")


def read_tables(params: Params) -> Tables:
    """Everything the page shows. The sections of other model families are no part of the run."""
    others = set(get_args(Model.model_fields["family"].annotation)) - {params.model.family}
    validation = REPORTS / "train/validation.tsv"
    return Tables(
        params=params.model_dump(exclude=others),
        metrics=files.read_json(REPORTS / "metrics.json"),
        methods=read_csv(REPORTS / "plots/methods.csv"),
        samples=read_csv(REPORTS / "plots/samples.csv"),
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
    )


def read_csv(path: Path) -> pd.DataFrame:
    """Read a text table; only an empty cell is a missing value, so that no name reads as one."""
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        return pd.read_csv(path, sep=separator, keep_default_na=False, na_values={"psnr": "", "ssim": ""})
    except FileNotFoundError:
        raise UserError(f"{relative(path)} is missing: run `dvc repro`, which makes it") from None


if __name__ == "__main__":
    typer.run(command(main))
