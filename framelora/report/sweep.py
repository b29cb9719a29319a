"""The page of a sweep: one plot and one table of the experiments of a grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from framelora.report.chart import Chart, draw
from framelora.report.page import page_environment, read_part
from framelora.report.verdict import SMALLEST, Verdict, adapters_of, count, decimals, signed

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
        verdict=verdict(trials),
        rows=rows,
        chart=gain_chart(trials),
    )


def gain_chart(trials: Sequence[Trial]) -> Chart | None:
    """The gain against the last parameter of the grid, a line for each combination of the others."""
    *others, along = trials[0].settings
    values = in_order({trial.settings[along] for trial in trials})
    lines: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        label = ", ".join(f"{name} {trial.settings[name]}" for name in others) or along
        if math.isfinite(trial.gain):
            lines.setdefault(label, []).append((float(values.index(trial.settings[along])), trial.gain))
    shown = list(lines.items())[:MOST]
    ordered = {(f"line{number} dots", label): sorted(points) for number, (label, points) in enumerate(shown)}
    about = f"Best PSNR gain over the base against {along}, a line for each {' and '.join(others) or 'run'}."
    return draw("PSNR gain over the base", about, along, "gain, dB", ordered, names=values)


def in_order(values: Collection[str]) -> list[str]:
    """Numbers by size, with other values by name after them."""

    def place(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(values, key=place)


def verdict(trials: Sequence[Trial]) -> Verdict:
    """Which experiment is best, and whether it is better than the base."""
    best = max(trials, key=lambda trial: trial.gain)
    adapter, metrics = best_adapter(best.metrics), best.metrics or {}
    if adapter is None:
        return Verdict("unclear", "No experiment was measured.")
    gain, low, high = (metrics[f"psnr_gain_{adapter}{end}"] for end in ("", "_low", "_high"))
    digits = decimals(low, high)
    settings = ", ".join(f"{name} {value}" for name, value in best.settings.items())
    text = f"Best of {count(len(trials), 'experiment')}: {settings}, {adapter}, "
    text += f"with {signed(gain, digits)} dB PSNR against the base"
    if max(abs(gain), abs(low), abs(high)) < SMALLEST:
        return Verdict("unclear", f"{text}: no improvement.")
    if low == high:  # there is no spread to resample
        return Verdict("unclear", f"{text}: one clip is too little to tell.")
    text += f" (95 % interval {signed(low, digits)} to {signed(high, digits)})"
    if low > 0:
        return Verdict("better", f"{text}: better than the base.")
    return Verdict(
        "worse" if high < 0 else "unclear", f"{text}: {'worse than the base' if high < 0 else 'no clear difference'}."
    )
