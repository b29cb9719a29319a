"""`framelora validate`: the gate alone, on any folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from framelora import files
from framelora.cells.store import open_store
from framelora.console import UserError, command, relative, say
from framelora.dataset import gate
from framelora.dataset.rules import ORDER, RULES
from framelora.dataset.summary import issues_report
from framelora.dataset.tokens import text_length
from framelora.params import load_params
from framelora.report.issues import build_issues_page

WRITTEN = {"index.html", "issues.csv", "issues.json", "pictures"}  # what a report is made of


@command
def validate(
    folder: Annotated[Path | None, typer.Argument(help="Data folder; default: data.root of params.yaml.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of rules, with their severities.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write the issues into this folder, as a page and as tables.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print infos too.")] = False,
) -> None:
    """Check a data folder under the rules and limits of params.yaml. Exit code 1 if there is an error."""
    params = load_params()
    if rules:
        print_rules(params.captions.severities)
        return
    root = folder or Path(params.data.root)
    if report is not None:
        check_folder(report, root)
    length = text_length(Path(params.model.base))
    store = open_store()
    inputs = gate.inspect(root, store, params.data, params.captions, params.extract, params.pair, length)
    levels = Counter(issue.severity for issue in inputs.issues)
    found = [counted(count, kind.replace("_", " ")) for kind, count in sorted(inputs.counts.items())]
    judged = [counted(levels[level], level) for level in ORDER]
    summary = f"{', '.join(found)}; {', '.join(judged)}"
    if report is not None:
        written = issues_report(inputs, store)
        notes = [gate.not_told(inputs)] if inputs.left_out else []
        page = build_issues_page(f"Data of {relative(root)}", summary, json.loads(written["issues.json"]), notes)
        files.replace_folder(report, {**written, "index.html": page.encode()})
    gate.show(inputs, all_levels=everything)
    say(f"{relative(root)}: {summary}")
    if report is not None:
        say(f"report: {relative(report / 'index.html')}")
    if levels["error"]:
        raise UserError(f"{counted(levels['error'], 'error')} in {relative(root)}: mend what is named above")


def check_folder(report: Path, root: Path) -> None:
    """Stop before a report becomes data, or takes the place of anything but an earlier report."""
    if report.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--report {report}: lies in the data folder: name another")
    if report.exists() and not report.is_dir():
        raise UserError(f"--report {report}: is a file: name a folder")
    others = sorted({path.name for path in report.iterdir()} - WRITTEN) if report.is_dir() else []
    if others:
        raise UserError(f"--report {report}: holds {others[0]}, which is no part of a report: name a new folder")


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 error`, `2 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_rules(severities: Mapping[str, str]) -> None:
    """Print the table of rules; a severity that params.yaml changes is marked."""
    table = Table(title="rules (captions.severities changes them)", title_justify="left")
    for title in ("rule", "severity", "what it finds", "how to mend it"):
        table.add_column(title)
    for rule in RULES.values():
        changed = severities.get(rule.name)
        table.add_row(rule.name, f"{changed} (was {rule.severity})" if changed else rule.severity, rule.about, rule.fix)
    Console().print(table)
