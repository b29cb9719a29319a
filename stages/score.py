"""Score the renders against the truth, on the lossless frames: PSNR and SSIM of the middles, PSNR of the ends.

Reads data/renders.parquet. Writes reports/metrics.json (totals) and reports/plots/ (a row a sample).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

from framelora import files
from framelora.cells.fill import ensure
from framelora.cells.store import open_store
from framelora.console import command, progress, say
from framelora.evaluation.metrics import bootstrap_interval, psnr, ssim
from framelora.media.lossless import decode_frames
from framelora.params import load_params
from framelora.schema.output import Score


def main() -> None:
    """Write metrics per sample and in total."""
    params = load_params().score
    store = open_store()
    index = files.read_table(Path("data/renders.parquet"))
    for kind, cells in index.groupby("cell_kind"):
        ensure(store, str(kind), cells.cell, "stages.render")
    rows = []
    for pair, group in progress(index.groupby("pair", sort=True), "score", index.pair.nunique()):
        clips = {row.method: decode_frames(store.read(row.cell_kind, row.cell)[1]) for row in group.itertuples()}
        truth = clips.pop("truth")
        for method, frames in clips.items():
            row = {"pair": pair, "kind": group.kind.iloc[0], "method": method}
            if row["kind"] == "window":
                row |= {"psnr": psnr(frames[1:-1], truth[1:-1]), "ssim": ssim(frames[1:-1], truth[1:-1])}
            rows.append(row | {"ends_psnr": psnr(frames[[0, -1]], truth[[0, -1]])})
    table = pd.DataFrame(rows, columns=["pair", "kind", "method", "psnr", "ssim", "ends_psnr"])
    metrics = totals(table, params)
    methods = table.groupby("method", sort=True)[["psnr", "ssim", "ends_psnr"]].mean()
    files.replace_folder(
        Path("reports/plots"),
        {
            "samples.csv": table.to_csv(index=False, float_format="%.4f").encode(),
            "methods.csv": methods.to_csv(float_format="%.4f").encode(),
        },
    )
    files.write_json(Path("reports/metrics.json"), metrics)
    say(methods.to_string(float_format="%.3f", na_rep="-"))


def totals(table: pd.DataFrame, params: Score) -> dict[str, float]:
    """Means over the test windows, and for each adapter weight the gain over the base with its 95 % interval.

    Keys: `psnr_METHOD` and `ends_psnr_METHOD` in dB, `ssim_METHOD` (higher is better in all), `psnr_gain_adapter_W` in
    dB with `_low` and `_high` (95 %, resampling clips), `windows` and `image_pairs` (counts).
    """
    windows = table[table.kind == "window"]
    metrics: dict[str, float] = {
        "windows": int(windows.pair.nunique()),
        "image_pairs": int(table[table.kind == "image_pair"].pair.nunique()),
    }
    for method, group in windows.groupby("method"):
        metrics[f"psnr_{method}"] = round(float(group.psnr.mean()), 4)
        metrics[f"ssim_{method}"] = round(float(group.ssim.mean()), 5)
    for method, group in table.groupby("method"):
        metrics[f"ends_psnr_{method}"] = round(float(group.ends_psnr.mean()), 4)
    values = windows.pivot(index="pair", columns="method", values="psnr")
    for method in (column for column in values.columns if column.startswith("adapter")):
        gains = (values[method] - values["base"]).to_numpy()
        sources = [str(pair).split("-", 1)[0] for pair in values.index]  # a pair's id begins with its content's
        low, high = bootstrap_interval(gains, sources, samples=params.bootstrap_samples, seed=params.seed)
        metrics[f"psnr_gain_{method}"] = round(float(gains.mean()), 4)
        metrics[f"psnr_gain_{method}_low"] = round(low, 4)
        metrics[f"psnr_gain_{method}_high"] = round(high, 4)
    return metrics


if __name__ == "__main__":
    typer.run(command(main))
