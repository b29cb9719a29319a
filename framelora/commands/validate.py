"""`framelora validate`: the gate alone, on any folder."""

from __future__ import annotations

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


@command
def validate(
    folder: Annotated[Path | None, typer.Argument(help="Data folder; default: data.root of params.yaml.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of rules, with their severities.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the issues into this folder.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print infos too.")] = False,
) -> None:
    """Check a data folder under the rules and limits of params.yaml. Exit code 1 if there is an error."""
    params = load_params()
    if rules:
        print_rules(params.captions.severities)
        return
    root = folder or Path(params.data.root)
    length = text_length(Path(params.model.base))
    store = open_store()
    inputs = gate.inspect(root, store, params.data, params.captions, params.extract, length)
    if report is not None:
        files.replace_folder(report, issues_report(inputs, store))
    gate.show(inputs, all_levels=everything)
    levels = Counter(issue.severity for issue in inputs.issues)
    found = [counted(count, kind.replace("_", " ")) for kind, count in sorted(inputs.counts.items())]
    judged = [counted(levels[level], level) for level in ORDER]
    say(f"{relative(root)}: {', '.join(found)}; {', '.join(judged)}")
    if levels["error"]:
        raise UserError(f"{counted(levels['error'], 'error')} in {relative(root)}: mend what is named above")


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
