"""The tables of scores: a row a method, a row a sample."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from framelora.evaluation.catalogue import ADAPTED, ENDS, PER_SAMPLE, PER_SET, Metric
from framelora.report.chart import Chart, draw
from framelora.report.verdict import adapters_of, signed, weight_of

EXACT = 100.0  # dB; where PSNR stops counting
EQUAL = "equal"


def digits(value: float | None, places: int) -> str:
    """A number with fixed decimals; a dash where there is none."""
    return "\N{EN DASH}" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def shown(value: float | None, metric: Metric) -> str:
    """A value of a metric; equal pictures have no finite PSNR."""
    if metric.unit == "dB" and value is not None and value >= EXACT:
        return EQUAL
    return digits(value, metric.digits)


def result_table(
    totals: pd.DataFrame,
    notes: Mapping[str, str],
    order: Callable[[str], int],
    about: Callable[[str], str],
    *,
    mid: bool,
) -> dict[str, Any]:
    """Means by method with their gains over the base, for the template.

    Args:
        totals: content of reports/plots/totals.csv.
        notes: why a metric has no values, by its name.
        order: where a method stands among the others.
        about: what a method is.
        mid: the frame in the middle alone, and not all middle frames.
    """
    ending = "_mid" if mid else ""
    rows = {(row.metric, row.method): row for row in totals.itertuples()}
    metrics = [metric for metric in PER_SAMPLE.values() if metric.has_mid or not mid]
    metrics += [] if mid else [ENDS, *PER_SET.values()]
    measured = {name for name, _ in rows}
    missing = [
        (metric.label, notes[metric.name])
        for metric in metrics
        if metric.name in notes and metric.name + ending not in measured
    ]
    metrics = [metric for metric in metrics if metric.name + ending in measured]
    found = []
    for method in sorted(set(totals.method), key=order):
        cells = [result_cell(rows.get((metric.name + ending, method)), metric) for metric in metrics]
        adapter = method.startswith(ADAPTED)
        found.append({"method": method, "about": about(method), "adapter": adapter, "cells": cells})
    if mid and not any(name.endswith("_mid") for name in measured):
        found = []
    return {"metrics": metrics, "rows": found, "missing": missing}


def result_cell(row: Any, metric: Metric) -> dict[str, str]:
    """A mean, and below it the gain with its interval."""
    if row is None:
        return {"value": "\N{EN DASH}", "gain": ""}
    gain, value = "", shown(row.mean, metric)
    if math.isfinite(row.gain) and value != EQUAL:  # a gain on frames that are equal says where PSNR stops counting
        low, high = (signed(value, metric.digits) for value in (row.gain_low, row.gain_high))
        gain = f"{signed(row.gain, metric.digits)} ({low} to {high})"
    return {"value": value, "gain": gain}


def score_columns(samples: pd.DataFrame) -> list[Metric]:
    """Metrics of the per-sample table that at least one sample has."""
    candidates = [*PER_SAMPLE.values(), ENDS]
    return [metric for metric in candidates if metric.name in samples and samples[metric.name].notna().any()]


def score_rows(
    samples: pd.DataFrame, metrics: Sequence[Metric], titles: Mapping[str, str], order: Callable[[str], int]
) -> list[dict[str, Any]]:
    """A row a sample and method, in the order of the samples."""
    places = {pair: number for number, pair in enumerate(titles)}
    rows = sorted(samples.itertuples(), key=lambda row: (places[row.pair], order(row.method)))
    return [
        {
            "pair": row.pair,
            "title": titles[row.pair],
            "method": row.method,
            "values": [shown(getattr(row, metric.name), metric) for metric in metrics],
        }
        for row in rows
    ]


def weight_charts(metrics: Mapping[str, float], totals: pd.DataFrame) -> list[Chart]:
    """The gain over the base against the adapter's weight, a chart a metric, when several weights are rendered."""
    adapters = adapters_of(metrics)
    if len(adapters) < 2:
        return []
    rows = totals.set_index(["metric", "method"])
    charts = []
    for metric in PER_SAMPLE.values():
        measured = [name for name in adapters if (metric.name, name) in rows.index]
        found = [(weight_of(name), rows.loc[(metric.name, name)]) for name in measured]
        if len(found) < 2:
            continue
        ends = [(found[0][0], 0.0), (found[-1][0], 0.0)]
        chart = draw(
            f"{metric.label} gain by weight",
            f"Gain in {metric.label} over the base by weight of the adapter: "
            + ", ".join(f"{weight:g}: {signed(row.gain, metric.digits)}" for weight, row in found),
            "weight of the adapter",
            f"gain, {metric.unit}" if metric.unit else "gain",
            {
                ("level", "base"): ends,
                ("strong dots", "gain"): [(weight, float(row.gain)) for weight, row in found],
                ("faint", "95 % interval"): [(weight, float(row.gain_low)) for weight, row in found],
                ("faint ", ""): [(weight, float(row.gain_high)) for weight, row in found],
            },
        )
        charts += [chart] if chart else []
    return charts


def steps_of(method: str) -> tuple[str, int] | None:
    """Sampler (empty where there is but one) and number of steps in the name `steps_SAMPLER_N`; None for others."""
    found = re.fullmatch(r"steps_(?:(.+)_)?(\d+)", method)
    return (found[1] or "", int(found[2])) if found else None


def step_charts(totals: pd.DataFrame) -> list[Chart]:
    """Each metric against the number of sampling steps, a line a sampler, where `render.step_sweep` asks for it."""
    charts = []
    for metric in PER_SAMPLE.values():
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in totals[totals.metric == metric.name].itertuples():
            if (run := steps_of(row.method)) is not None:
                lines.setdefault(run[0] or "steps", []).append((float(run[1]), float(row.mean)))
        if not lines:
            continue
        told = {name: sorted(points) for name, points in sorted(lines.items())}
        chart = draw(
            f"{metric.label} by steps",
            f"{metric.label} against the number of sampling steps: "
            + "; ".join(
                f"{name} " + ", ".join(f"{steps:g}: {shown(value, metric)}" for steps, value in points)
                for name, points in told.items()
            ),
            "steps",
            metric.title,
            {(f"line{number} dots", name): points for number, (name, points) in enumerate(told.items())},
        )
        charts += [chart] if chart else []
    return charts


def dynamics_charts(metrics: Mapping[str, float]) -> list[Chart]:
    """Steadiness against motion, by weight, where both are measured: the weights alone, so that one can be chosen by
    eye, then beside the truth and a clip that stands still, which is perfectly steady."""
    line = [name for name in ("base", *adapters_of(metrics)) if f"warp_error_{name}" in metrics]
    if not metrics.get("flow_magnitude_base") or len(line) < 2:
        return []
    labels = {"truth": "the true clip", "still": "a clip that stands still", "hold_first": "the first frame held"}
    beside = [name for name in labels if f"warp_error_{name}" in metrics]
    points = {name: (metrics.get(f"dynamics_{name}", 1.0), metrics[f"warp_error_{name}"]) for name in (*line, *beside)}
    charts: list[Chart] = []
    wider = [("The same beside what is true or still", beside)] if beside else []
    for title, others in (("Warp error against motion", []), *wider):
        told = {name: points[name] for name in (*line, *others)}
        chart = draw(
            title,
            "Warp error in levels, and motion as a share of the base's: "
            + ", ".join(f"{name} {error:.2f} at {100 * moved:.0f} %" for name, (moved, error) in told.items()),
            "motion, share of the base's",
            "warp error, levels",
            {
                ("strong dots", "base, then rising weights"): [points[name] for name in line],
                **{(f"line{n} dots", labels[name]): [points[name]] for n, name in enumerate(others, 1)},
            },
        )
        charts += [chart] if chart else []
    return charts
