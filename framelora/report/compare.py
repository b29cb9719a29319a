"""Builds the page that sets runs of several revisions side by side: a pure function of what was read of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from framelora.evaluation.catalogue import ENDS, PER_SAMPLE, Metric
from framelora.evaluation.intervals import bootstrap_interval
from framelora.evaluation.totals import source_of
from framelora.report.chart import Chart, draw, smoothed
from framelora.report.page import flat, page_environment, read_part, read_script
from framelora.report.scores import shown
from framelora.report.verdict import SMALLEST, adapters_of, against_base, count, decimals, signed

MOST = 6  # revisions: as many as there are colours


@dataclass(frozen=True)
class Revision:
    """A run, as one revision holds it. A run that stopped has neither scores nor videos."""

    name: str
    commit: str
    params: dict[str, Any]
    digests: dict[str, str]
    """Digest of each file that the stages depend on, from dvc.lock."""
    sources: dict[str, str]
    """Name of each source by its content id."""
    loss: pd.DataFrame | None = None
    validation: pd.DataFrame | None = None
    metrics: dict[str, float] | None = None
    samples: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None
    stopped: str | None = None
    videos: dict[tuple[str, str], str] = field(default_factory=dict)
    """Path beside the page by pair and method."""

    @property
    def label(self) -> str:
        """Name and commit."""
        return (
            f"{self.name} ({self.commit[:8]})" if self.commit and not self.commit.startswith(self.name) else self.name
        )


def build_comparison(revisions: Sequence[Revision], *, bootstrap: int, seed: int) -> str:
    """The page: what differs between the first revision and each other one, and how it shows."""
    return (
        page_environment()
        .get_template("compare.html.j2")
        .render(
            title="framelora compare: " + ", ".join(revision.name for revision in revisions),
            style=read_part("page.css"),
            script=read_script("player.js") + 'players(document.querySelectorAll(".sample"));\n',
            revisions=revisions,
            statements=statements(revisions, bootstrap=bootstrap, seed=seed),
            params=changed_params(revisions),
            sources=changed_sources(revisions),
            code=changed_code(revisions),
            scores=score_table(revisions, bootstrap=bootstrap, seed=seed),
            charts=[chart for chart in (loss_chart(revisions), validation_chart(revisions)) if chart],
            samples=shared_samples(revisions),
        )
    )


def statements(revisions: Sequence[Revision], *, bootstrap: int, seed: int) -> list[tuple[str, str]]:
    """A tone and a sentence a revision: against its own base, and against the first revision."""
    found = []
    for revision in revisions:
        if revision.stopped:
            found.append(
                ("worse", f"{revision.label}: the training stopped, so there is no adapter: {revision.stopped}.")
            )
            continue
        metrics, samples = revision.metrics or {}, revision.samples
        clips = 0 if samples is None else samples.query("kind == 'window'").pair.map(source_of).nunique()
        if not clips:
            found.append(("unclear", f"{revision.label}: not measured, there are no test windows."))
        for adapter in adapters_of(metrics) if clips else []:
            verdict = against_base(metrics, adapter, clips, count(int(metrics["windows"]), "window"))
            found.append((verdict.tone, f"{revision.label}: {verdict.text}"))
    first = revisions[0]
    for other in revisions[1:]:
        for adapter in shared_adapters(first, other):
            found.append(between(first, other, adapter, bootstrap=bootstrap, seed=seed))
    return found


def shared_adapters(one: Revision, other: Revision) -> list[str]:
    """Adapters of equal weight that both revisions rendered."""
    return [name for name in adapters_of(one.metrics or {}) if name in adapters_of(other.metrics or {})]


def between(one: Revision, other: Revision, adapter: str, *, bootstrap: int, seed: int) -> tuple[str, str]:
    """Which of two revisions' adapters is nearer to the truth, on the windows that both rendered."""
    found = improvement(one, other, adapter, "psnr", PER_SAMPLE["psnr"], bootstrap=bootstrap, seed=seed)
    if found is None:
        return "unclear", f"{adapter} of {other.label} and of {one.label} have no test window in common."
    gain, low, high, windows, clips = found
    digits = decimals(low, high)
    text = f"{adapter} of {other.label}: {signed(gain, digits)} dB PSNR against {one.label}"
    text += f" on {count(windows, 'shared window')}"
    if max(abs(gain), abs(low), abs(high)) < SMALLEST:
        return "unclear", f"{text}: no difference."
    if clips == 1:
        return "unclear", f"{text}: one clip is too little to tell."
    text += f" (95 % interval {signed(low, digits)} to {signed(high, digits)})"
    if low > 0:
        return "better", f"{text}: {other.label} is better."
    if high < 0:
        return "worse", f"{text}: {one.label} is better."
    return "unclear", f"{text}: no clear difference."


def improvement(
    one: Revision, other: Revision, method: str, column: str, metric: Metric, *, bootstrap: int, seed: int
) -> tuple[float, float, float, int, int] | None:
    """Mean improvement of `other` on `one` over shared samples, its 95 % interval, and how many samples and clips."""
    if one.samples is None or other.samples is None or not {column} <= set(one.samples) & set(other.samples):
        return None
    values = [table[table.method == method].set_index("pair")[column] for table in (one.samples, other.samples)]
    gains = metric.improvement(values[1], values[0]).dropna().sort_index()
    if gains.empty:
        return None
    sources = [source_of(str(pair)) for pair in gains.index]
    low, high = bootstrap_interval(gains.to_numpy(), sources, samples=bootstrap, seed=seed)
    return float(gains.mean()), low, high, len(gains), len(set(sources))


def changed_params(revisions: Sequence[Revision]) -> list[tuple[str, list[str]]]:
    """Parameters that are not the same everywhere, with the value of each revision."""
    tables = [dict(flat(revision.params)) for revision in revisions]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "\N{EN DASH}") for table in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def changed_sources(revisions: Sequence[Revision]) -> list[tuple[str, list[str]]]:
    """Sources that are not in every revision, with whether each has them."""
    contents = dict.fromkeys(content for revision in revisions for content in revision.sources)
    rows = []
    for content in contents:
        there = [content in revision.sources for revision in revisions]
        if not all(there):
            name = next(revision.sources[content] for revision in revisions if content in revision.sources)
            rows.append((name, ["there" if has else "\N{EN DASH}" for has in there]))
    return sorted(rows)


def changed_code(revisions: Sequence[Revision]) -> list[tuple[str, list[str]]]:
    """Code files and base models that are not the same everywhere, with the beginning of each digest."""
    names = sorted({name for revision in revisions for name in revision.digests})
    code = [name for name in names if name.endswith((".py", ".j2", ".js", ".css", "base.lock.json", "/networks"))]
    rows = [(name, [revision.digests.get(name, "\N{EN DASH}")[:8] for revision in revisions]) for name in code]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def score_table(revisions: Sequence[Revision], *, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """A row a metric and method: each revision's mean, and its improvement on the first with the interval."""
    methods = dict.fromkeys(
        method
        for revision in revisions
        if revision.samples is not None
        for method in ("base", *adapters_of(revision.metrics or {}), "truth_vae")
    )
    rows = []
    for metric in [*PER_SAMPLE.values(), ENDS]:
        for method in methods:
            values = [(revision.metrics or {}).get(f"{metric.name}_{method}") for revision in revisions]
            if all(value is None for value in values):
                continue
            cells = []
            for revision, value in zip(revisions, values, strict=True):
                gain = ""
                if revision is not revisions[0]:
                    found = improvement(
                        revisions[0], revision, method, metric.name, metric, bootstrap=bootstrap, seed=seed
                    )
                    if found:
                        texts = [signed(number, metric.digits) for number in found[:3]]
                        gain = "{} ({} to {})".format(*texts)
                cells.append({"value": shown(value, metric), "gain": gain})
            rows.append({"metric": metric, "method": method, "cells": cells})
    return rows


def loss_chart(revisions: Sequence[Revision]) -> Chart | None:
    """The running means of the training losses, a line a revision."""
    series = {}
    for number, revision in enumerate(revisions):
        if revision.loss is not None and len(revision.loss):
            points = list(zip(revision.loss.step.astype(float), revision.loss.loss.astype(float), strict=True))
            series[f"line{number}", revision.label] = smoothed([p for p in points if math.isfinite(p[1])] or points)
    return draw("Training loss", "Running mean of the training loss of each revision.", "step", "loss", series)


def validation_chart(revisions: Sequence[Revision]) -> Chart | None:
    """The validation losses, a line a revision."""
    series = {}
    for number, revision in enumerate(revisions):
        table = revision.validation
        if table is not None and len(table):
            points = list(zip(table.step.astype(float), table.validation_loss.astype(float), strict=True))
            series[f"line{number} dots", revision.label] = points
    return draw("Validation loss", "Validation loss of each revision.", "step", "loss", series)


def shared_samples(revisions: Sequence[Revision]) -> list[dict[str, Any]]:
    """Held-out samples that every finished revision rendered, with one truth and the videos of each revision."""
    finished = [revision for revision in revisions if revision.videos]
    if not finished:
        return []
    common = set.intersection(*({pair for pair, _ in revision.videos} for revision in finished))
    windows = finished[0].pairs
    found: list[dict[str, Any]] = []
    for row in windows.itertuples() if windows is not None else []:
        if row.pair not in common:
            continue
        videos = [{"label": "truth", "src": finished[0].videos[row.pair, "truth"], "adapter": False}]
        for revision in finished:
            for method in ("base", *adapters_of(revision.metrics or {})):
                if (row.pair, method) in revision.videos:
                    src = revision.videos[row.pair, method]
                    videos.append({"label": f"{method}, {revision.label}", "src": src, "adapter": method != "base"})
        name = finished[0].sources.get(row.content_id, row.content_id)
        place = f"frames {row.start_frame} to {row.end_frame}" if row.kind == "window" else "image pair"
        sizes = {"width": row.width, "height": row.height, "num_frames": row.num_frames}
        found.append({"id": row.pair, "title": f"{name}: {place}", "videos": videos, **sizes})
    return found
