"""What the report shows of the data: counts, the rules that were broken, and each source with its issues."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from typing import Any

from framelora.cells.store import MissingCell, Store
from framelora.dataset.gate import Inputs, facts_cell
from framelora.dataset.rules import ORDER, RULES

PICTURES = 200  # sources that are shown with a thumbnail; those with errors and warnings come first


def data_page(inputs: Inputs, store: Store) -> dict[str, bytes]:
    """`data.json`: what a page about the data needs, but for the split, which `pair` decides.

    Keys: `found` (files by kind, readable or not), `severities` (issues by severity), `rules` (each broken rule with
    severity, count, what it means, how to mend it), `sources` (the worst first: name, kind, content id, facts,
    caption, issues, and for the first 200 a `thumbnail` as a data URI).
    """
    issues = inputs.issues
    of_source: dict[str, list[dict[str, str]]] = defaultdict(list)
    for issue in issues:
        of_source[issue.where].append({"severity": issue.severity, "rule": issue.rule, "message": issue.message})
    counts = Counter((issue.severity, issue.rule) for issue in issues)
    page: dict[str, Any] = {
        "found": inputs.counts,
        "severities": dict(Counter(issue.severity for issue in issues)),
        "rules": [
            {"severity": severity, "rule": rule, "count": count, "about": RULES[rule].about, "fix": RULES[rule].fix}
            for (severity, rule), count in counts.items()
        ],
        "sources": [],
    }
    for source in inputs.sources:
        content_id = inputs.content_ids[source.name]
        caption = inputs.gathered.captions.get(content_id)
        places = dict.fromkeys([source.name, *source.paths, *([caption.where] if caption else [])])
        facts = inputs.facts[source.path]
        page["sources"].append(
            {
                "name": source.name,
                "kind": source.kind,
                "content_id": content_id,
                "width": facts.width,
                "height": facts.height,
                "seconds": round(facts.duration, 3),
                "fps": round(facts.fps, 3),
                "codec": facts.codec,
                "caption": caption.text if caption else "",
                "caption_from": caption.where if caption else "",
                "issues": [issue for place in places for issue in of_source.get(place, [])],
            }
        )
    page["sources"].sort(key=lambda row: (worst(row["issues"]), row["name"]))
    paths = {source.name: source.path for source in inputs.sources}
    for row in page["sources"][:PICTURES]:
        cell = facts_cell(paths[row["name"]], inputs.digests[paths[row["name"]]])
        try:
            picture = store.read(cell.kind, cell.key)[1]
        except MissingCell:
            continue
        row["thumbnail"] = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    return {"data.json": (json.dumps(page, ensure_ascii=False) + "\n").encode()}


def worst(issues: list[dict[str, str]]) -> int:
    """Place of the worst severity in `ORDER`; its length when there is no issue."""
    return min((ORDER.index(issue["severity"]) for issue in issues), default=len(ORDER))
