"""What is written of the issues: a table for people and for programs, and a picture of each source that has one."""

from __future__ import annotations

import contextlib
import json

import pandas as pd

from framelora.cells.store import MissingCell, Store
from framelora.dataset.gate import Inputs, facts_cell
from framelora.dataset.sources import Source

PICTURES = 200  # sources with issues of which a picture is kept, those with the worst first


def issues_report(inputs: Inputs, store: Store) -> dict[str, bytes]:
    """`issues.csv` and `issues.json`, the same rows in both, worst first, and the pictures that their column `picture`
    names: the first frame of the source that an issue is about, where there is one."""
    sources: dict[str, Source] = {}
    for source in inputs.sources:
        caption = inputs.gathered.captions.get(inputs.content_ids[source.name])
        for place in (source.name, *source.paths, *([caption.where] if caption else [])):
            sources.setdefault(place, source)
    pictures: dict[str, bytes] = {}
    rows = []
    for issue in inputs.issues:
        name = ""
        if (about := sources.get(issue.where)) is not None:
            name = f"pictures/{inputs.content_ids[about.name]}.jpg"
            if name not in pictures and len(pictures) < PICTURES:
                cell = facts_cell(about.path, inputs.digests[about.path])
                with contextlib.suppress(MissingCell):  # damaged, which has been said; the next run makes it anew
                    pictures[name] = store.read(cell.kind, cell.key)[1]
        rows.append({**vars(issue), "picture": name if name in pictures else ""})
    table = pd.DataFrame(rows, columns=["severity", "rule", "where", "message", "fix", "picture"])
    return {
        "issues.csv": table.to_csv(index=False).encode(),
        "issues.json": (json.dumps(table.to_dict("records"), indent=2, ensure_ascii=False) + "\n").encode(),
        **pictures,
    }
