"""`framelora metrics`: the last run's totals as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from framelora.console import say
from framelora.evaluation.catalogue import ALL, ENDS, PER_SAMPLE, PER_SET, Metric
from framelora.files import read_json

METRICS = Path("reports/metrics.json")
NOTES = Path("reports/plots/notes.json")
WIDTH = 100  # columns of the table in a file or a pipe


def show() -> None:
    """Print the metrics of the last run: each method on the test pairs, and the adapter's gain over the base."""
    totals = read_json(METRICS)
    table = Table(title=f"{totals['windows']} test windows, {totals['image_pairs']} image pairs", title_justify="left")
    shown = [metric for metric in {**PER_SAMPLE, **PER_SET}.values() if any(has(totals, metric))]
    table.add_column("method", no_wrap=True)
    for metric in shown:
        arrow = "\N{UPWARDS ARROW}" if metric.better == "higher" else "\N{DOWNWARDS ARROW}"
        table.add_column(f"{metric.title} {arrow}", justify="right")
    table.add_column("PSNR gain over\nthe base, dB (95 %)", justify="right", no_wrap=True)
    for method in sorted({method for metric in (*shown, ENDS) for method in has(totals, metric)}):
        values = [totals.get(f"{metric.name}_{method}") for metric in shown]
        cells = ["-" if value is None else f"{value:.{m.digits}f}" for value, m in zip(values, shown, strict=True)]
        gain = f"psnr_gain_{method}"
        ends = [totals[gain], totals[f"{gain}_low"], totals[f"{gain}_high"]] if gain in totals else []
        table.add_row(method, *cells, "{:+.2f} ({:+.2f} to {:+.2f})".format(*ends) if ends else "")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for name, note in sorted(read_json(NOTES).items()) if NOTES.is_file() else []:
        say(f"{ALL[name].label if name in ALL else name}: {note}")


def has(totals: Mapping[str, float], metric: Metric) -> list[str]:
    """Methods that a metric is known of."""
    start = f"{metric.name}_"
    others = tuple(f"{metric.name}_{part}_" for part in ("mid", "gain"))
    return [key.removeprefix(start) for key in totals if key.startswith(start) and not key.startswith(others)]
