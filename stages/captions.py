"""The gate: digest and probe every input file, read every caption, and stop before anything is decoded if data is bad.

Reads data.root. Writes data/sources.parquet (the only table with names of files), data/captions.parquet and
reports/captions/issues.{csv,json}.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import typer

from framelora import files
from framelora.cells.fill import Computed, Filling
from framelora.cells.store import Cell, MissingCell, open_store
from framelora.console import UserError, command, progress, relative, say, warn
from framelora.dataset import captions, sources
from framelora.dataset.captions import Issue, Severity
from framelora.dataset.sources import Source
from framelora.media.probe import DEMUXERS, Facts, Unreadable, probe_image, probe_video
from framelora.params import load_params
from framelora.source import source_digest
from framelora.versions import versions


def main() -> None:
    """Check the inputs and write the tables of sources and captions."""
    params = load_params()
    root = Path(params.data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {relative(root)} does not exist: create the folder and put clips into it")
    found, widows, single = sources.group(sources.walk(root))
    if not found:
        raise UserError(
            f"data.root: {relative(root)} holds no clip ({' '.join(DEMUXERS)}) and no image pair "
            "(NAME_start and NAME_end, .jpg .jpeg .png .webp): put some into it"
        )
    issues = [
        Issue("error", "half-pair", path, "has no other half, or is one too many: add the other, or rename the image")
        for path in widows
    ]
    issues += [Issue("warning", "single-image", path, "is neither _start nor _end: not used") for path in single]

    store = open_store()
    cache = sources.DigestCache(store.root / "digests.json")
    paths = [path for source in found for path in source.paths]
    digests = {path: cache.digest(root / path) for path in progress(paths, "captions digests", len(paths))}
    cache.save()
    facts, unreadable = probe_files(Filling(store, "captions"), root, digests)
    severity: Severity = "warning" if params.extract.on_error == "skip" else "error"
    issues += [Issue(severity, "unreadable", path, reason) for path, reason in unreadable.items()]
    found = [source for source in found if not set(source.paths) & set(unreadable)]
    issues += [issue for source in found for issue in check_source(source, facts)]

    content_ids = {source.name: source.content_id(digests) for source in found}
    texts, caption_issues = captions.gather_captions(root, found, content_ids)
    write_issues(sorted(issues + caption_issues))

    files.write_table(
        Path("data/sources.parquet"), list(sources.source_rows(found, digests, facts.__getitem__)), sources.SCHEMA
    )
    rows = [{"content_id": content_id, "text": text} for content_id, text in sorted(texts.items())]
    files.write_table(Path("data/captions.parquet"), rows, captions.SCHEMA)
    kinds = pd.Series([source.kind for source in found]).value_counts()
    say(f"captions: {kinds.get('video', 0)} clips, {kinds.get('image_pair', 0)} image pairs, {len(rows)} contents")
    if not found:
        raise UserError(
            f"data.root: none of the files in {relative(root)} can be read: see reports/captions/issues.csv"
        )


def probe_files(filling: Filling, root: Path, digests: dict[str, str]) -> tuple[dict[str, Facts], dict[str, str]]:
    """Facts of each file, one cell a content, and the reason of each file that has none."""
    unreadable: dict[str, str] = {}
    cells = {path: facts_cell(path, digest) for path, digest in digests.items()}
    by_key = {cell.key: path for path, cell in cells.items()}

    def probe(cell: Cell) -> Computed:
        path = by_key[cell.key]
        try:
            facts = probe_video(root / path) if Path(path).suffix.lower() in DEMUXERS else probe_image(root / path)
        except Unreadable as reason:
            unreadable.update({name: str(reason) for name, other in cells.items() if other.key == cell.key})
            return
        yield cell, b"", vars(facts)

    filling.fill(list(cells.values()), probe)
    filling.close()
    facts = {}
    for path, cell in cells.items():
        try:
            facts[path] = Facts(**filling.store.read(cell.kind, cell.key)[0].meta)
        except MissingCell:
            unreadable.setdefault(path, "could not be probed")
    return facts, unreadable


def facts_cell(path: str, digest: str) -> Cell:
    """The cell of a file's facts."""
    inputs = {
        "digest": digest,
        "suffix": Path(path).suffix.lower(),
        "code": source_digest("framelora.media.probe"),
        "versions": versions("av", "pillow"),
    }
    return Cell("captions/facts", digest, inputs)


def check_source(source: Source, facts: dict[str, Facts]) -> list[Issue]:
    """What is wrong with a readable source."""
    first, *others = (facts[path] for path in source.paths)
    if any((other.width, other.height) != (first.width, first.height) for other in others):
        sizes = " and ".join(f"{facts[path].width}x{facts[path].height}" for path in source.paths)
        return [Issue("error", "pair-sizes", source.name, f"start and end differ: {sizes}; make them one size")]
    return []


def write_issues(issues: list[Issue]) -> None:
    """Write the report of the gate; stop when an issue is an error."""
    table = pd.DataFrame([vars(issue) for issue in issues], columns=["severity", "rule", "where", "message"])
    files.replace_folder(
        Path("reports/captions"),
        {
            "issues.csv": table.to_csv(index=False).encode(),
            "issues.json": (json.dumps(table.to_dict("records"), indent=2, ensure_ascii=False) + "\n").encode(),
        },
    )
    for issue in issues:
        if issue.severity != "info":
            warn(f"{issue.severity}: {issue.where}: {issue.message} [{issue.rule}]")
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        raise UserError(
            f"{errors[0].where}: {errors[0].message}"
            + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
            + "; mend the data (reports/captions/issues.csv lists all)"
        )


if __name__ == "__main__":
    typer.run(command(main))
