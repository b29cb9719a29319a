"""The page of a sweep: one plot and one table of the experiments of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framelora.report.chart import Chart, draw
from framelora.report.page import page_environment, read_part
from framelora.report.verdict import adapters_of, signed

MOST = 6  # lines: as many as there are colours


@dataclass(frozen=True)
class Trial:
    """One experiment: the parameters that were set and what came out; no metrics if it failed."""

    settings: dict[str, str]
    metrics: dict[str, float] | None

    @property
    def gain(self) -> float:
        """The largest PSNR gain over the base among the rendered weights, in dB; minus infinity without one."""
        adapter = best_adapter(self.metrics)
        return -math.inf if adapter is None or self.metrics is None else self.metrics[f"psnr_gain_{adapter}"]


def best_adapter(metrics: Mapping[str, float] | None) -> str | None:
    """The rendered weight with the largest PSNR gain; None when nothing was measured."""
    measured = [name for name in adapters_of(metrics or {}) if f"psnr_gain_{name}" in (metrics or {})]
    return max(measured, key=lambda name: (metrics or {})[f"psnr_gain_{name}"], default=None)


def build_sweep(trials: Sequence[Trial]) -> str:
    """The page."""
    names = list(trials[0].settings)
    rows = []
    for trial in sorted(trials, key=lambda trial: trial.gain, reverse=True):
        adapter, metrics = best_adapter(trial.metrics), trial.metrics or {}
        outcome = "failed" if trial.metrics is None else "not measured"
        if adapter is not None:
            gain, low, high = (signed(metrics[f"psnr_gain_{adapter}{end}"], 3) for end in ("", "_low", "_high"))
            outcome = f"{gain} ({low} to {high})"
        psnr = f"{metrics[f'psnr_{adapter}']:.2f}" if adapter else "\N{EN DASH}"
        rows.append({"values": list(trial.settings.values()), "adapter": adapter, "psnr": psnr, "outcome": outcome})
    template = page_environment().get_template("sweep.html.j2")
    return template.render(
        title="framelora sweep: " + " by ".join(names),
        style=read_part("page.css"),
        names=names,
        rows=rows,
        chart=gain_chart(trials),
    )


def gain_chart(trials: Sequence[Trial]) -> Chart | None:
    """The gain against the last parameter of the grid, a line for each combination of the others."""
    *others, along = trials[0].settings
    values = list(dict.fromkeys(trial.settings[along] for trial in trials))
    places = {value: position(value, values) for value in values}
    lines: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        label = ", ".join(f"{name} {trial.settings[name]}" for name in others) or along
        if math.isfinite(trial.gain):
            lines.setdefault(label, []).append((places[trial.settings[along]], trial.gain))
    shown = list(lines.items())[:MOST]
    ordered = {(f"line{number} dots", label): sorted(points) for number, (label, points) in enumerate(shown)}
    about = f"Best PSNR gain over the base against {along}, a line for each {' and '.join(others) or 'run'}."
    return draw("PSNR gain over the base", about, along, "gain, dB", ordered)


def position(value: str, values: Sequence[str]) -> float:
    """Where a value stands on the axis: itself if it is a number, else its place in the grid."""
    try:
        return float(value)
    except ValueError:
        return float(values.index(value))
