"""Builds the page that `framelora validate --report` writes: a pure function of the issues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from framelora.dataset.rules import RULES
from framelora.report.page import page_environment, read_part


def build_issues_page(title: str, summary: str, issues: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> str:
    """The page: a sentence, a row a rule, a row an issue with a picture of what it is about.

    Args:
        title: of the page.
        summary: what was found, in a sentence.
        issues: rows of issues.json, worst first; the pictures that they name lie beside the page.
        notes: what else is to be said, a line each.
    """
    levels = {issue["severity"] for issue in issues}
    counts = Counter((issue["severity"], issue["rule"]) for issue in issues)
    return (
        page_environment()
        .get_template("issues.html.j2")
        .render(
            title=title,
            style=read_part("page.css"),
            tone="worse" if "error" in levels else "unclear" if "warning" in levels else "better",
            summary=summary,
            notes=notes,
            rules=[(RULES[name], severity, number) for (severity, name), number in counts.items()],
            issues=issues,
        )
    )
