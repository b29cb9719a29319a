"""From the per-sample table to totals: means, and how sure it is that one method is better than the base."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from framelora.evaluation.catalogue import ADAPTED, ENDS, PER_SAMPLE, Metric
from framelora.evaluation.intervals import bootstrap_interval

EXTREMES = 3  # best and worst samples that are named, each


def columns_of(names: Sequence[str]) -> list[tuple[str, Metric]]:
    """Columns of the per-sample table with their metrics, in order."""
    found = []
    for name in names:
        metric = PER_SAMPLE[name]
        found.append((name, metric))
        if metric.has_mid:
            found.append((f"{name}_mid", metric))
    return [*found, (ENDS.name, ENDS)]


def source_of(pair: str) -> str:
    """The content id that a pair's id begins with."""
    return pair.split("-", 1)[0]


def total_table(samples: pd.DataFrame, names: Sequence[str], *, bootstrap: int, seed: int) -> pd.DataFrame:
    """A row a metric and method: the mean, and the improvement over the base with its 95 % interval.

    Args:
        samples: a row a sample and method, with `pair`, `method` and the columns of `columns_of`.
        names: the metrics.
        bootstrap: resamplings of the clips.
        seed: seed of the resampling.

    Returns:
        `metric`, `method`, `mean`, `gain`, `gain_low`, `gain_high` (positive is better, whatever the metric's
        direction; empty for the base), `samples` (how many were measured), `unit`, `better`.
    """
    rows = []
    for column, metric in columns_of(names):
        if column not in samples:  # there are no test windows
            continue
        values = samples.pivot(index="pair", columns="method", values=column).astype(float).dropna(how="all")
        for method in values.columns:
            own = values[method].dropna()
            if own.empty:
                continue
            row = {"metric": column, "method": method, "mean": own.mean()}
            if method != "base" and "base" in values:
                gains = metric.improvement(own, values["base"]).dropna()
                low, high = bootstrap_interval(
                    gains.to_numpy(), [source_of(str(pair)) for pair in gains.index], samples=bootstrap, seed=seed
                )
                row |= {"gain": gains.mean(), "gain_low": low, "gain_high": high}
            rows.append({**row, "samples": len(own), "unit": metric.unit, "better": metric.better})
    kept = ["metric", "method", "mean", "gain", "gain_low", "gain_high", "samples", "unit", "better"]
    return pd.DataFrame(rows, columns=kept)


def flat_metrics(samples: pd.DataFrame, totals: pd.DataFrame) -> dict[str, float]:
    """The content of reports/metrics.json: `METRIC_METHOD`, and `METRIC_gain_ADAPTER` with `_low` and `_high`.

    Where `flow_magnitude` is measured, `dynamics_METHOD` is its share of the base's. Also `windows` and
    `image_pairs`, the numbers of test samples. docs/metrics.md explains every key.
    """
    counts = samples.groupby("kind").pair.nunique()
    found: dict[str, float] = {
        "windows": int(counts.get("window", 0)),
        "image_pairs": int(counts.get("image_pair", 0)),
    }
    for row in totals.itertuples():
        found[f"{row.metric}_{row.method}"] = round(float(row.mean), 5)
        if row.method.startswith(ADAPTED) and row.metric != ENDS.name:
            for ending, value in (("", row.gain), ("_low", row.gain_low), ("_high", row.gain_high)):
                found[f"{row.metric}_gain_{row.method}{ending}"] = round(float(value), 5)
    measured = totals[totals.metric == "flow_magnitude"].method
    moved = {method: found[f"flow_magnitude_{method}"] for method in measured}
    for method, flow in moved.items():
        if method != "base" and moved.get("base"):
            found[f"dynamics_{method}"] = round(flow / moved["base"], 5)
    return found


def extremes(samples: pd.DataFrame) -> pd.DataFrame:
    """The windows that each adapter makes most better and most worse, by PSNR against the base.

    Returns:
        `method`, `which` (best or worst), `rank` from 1, `pair`, `psnr`, `base_psnr`, `gain`.
    """
    rows = []
    if "psnr" in samples:
        values = samples[samples.kind == "window"].pivot(index="pair", columns="method", values="psnr").astype(float)
        for method in (name for name in values.columns if name.startswith("adapter_")):
            gains = (values[method] - values["base"]).sort_values(kind="stable")
            half = (len(gains) + 1) // 2  # of a few windows none is both
            for which, ordered in (("best", gains[::-1][:half]), ("worst", gains[: len(gains) - half])):
                for rank, (pair, gain) in enumerate(ordered.head(EXTREMES).items(), start=1):
                    scores = {"psnr": values.at[pair, method], "base_psnr": values.at[pair, "base"]}
                    rows.append({"method": method, "which": which, "rank": rank, "pair": pair, **scores, "gain": gain})
    return pd.DataFrame(rows, columns=["method", "which", "rank", "pair", "psnr", "base_psnr", "gain"])
