"""The gate: digest and probe every file, read every caption, judge all. Of a video one frame is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framelora.cells.fill import Computed, Filling
from framelora.cells.store import Cell, Store
from framelora.console import UserError, progress, relative, warn
from framelora.dataset import captions, checks, sources, tracks
from framelora.dataset.captions import Gathered
from framelora.dataset.filters import check_columns
from framelora.dataset.pairs import MEASURES
from framelora.dataset.rules import ORDER, RULES, Finding, Issue, judge, left_out, unopened
from framelora.dataset.sources import Source
from framelora.dataset.tokens import TextLength
from framelora.digest import sha256
from framelora.media.probe import (
    DEMUXERS,
    Facts,
    Limits,
    OverLimit,
    Unreadable,
    Unsupported,
    peek_image,
    peek_video,
    thumbnail,
)
from framelora.schema.data import Captions, Data, Extract, Pair
from framelora.source import source_digest
from framelora.versions import versions

SHOWN = 10  # issues of one rule that are printed; the report has all


@dataclass
class Inputs:
    """What is in a data root.

    Attributes:
        sources: the clips, images and image pairs that can be read, by name.
        digests: SHA-256 of each of their files.
        facts: facts of each of their files.
        content_ids: content id of each source, by its name.
        gathered: captions and other columns by content id.
        tracks: tracks of points that came with a video, as JSON by its path (`dataset.tracks`).
        issues: all that is wrong.
        left_out: files, rows and captions that are not used for rules that are off, by rule.
        counts: files of each kind that were found, readable or not.
    """

    sources: list[Source]
    digests: dict[str, str]
    facts: dict[str, Facts]
    content_ids: dict[str, str]
    gathered: Gathered
    issues: list[Issue]
    counts: dict[str, int] = field(default_factory=dict)
    tracks: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def inspect(
    root: Path,
    store: Store,
    data: Data,
    params: Captions,
    extract: Extract,
    pair: Pair,
    length: TextLength,
) -> Inputs:
    """Look at everything in a data root.

    A file is read once; afterwards its digest is trusted until its length, times or inode change, and its facts are a
    cell.

    Raises:
        UserError: there is no such folder, or nothing in it; or a parameter names a rule or a column that is not there.
    """
    for rule in params.severities:
        if rule not in RULES:
            raise UserError(
                f"params.yaml: captions.severities: there is no rule {rule!r}: `framelora validate --rules` lists them"
            )
    if not root.is_dir():
        raise UserError(f"data.root: {relative(root)} does not exist: create the folder and put clips into it")
    names, findings = sources.scan(root)
    found, unused = sources.group(names, images=data.images)
    findings += unused
    findings += checks.check_names(names)
    if not found:
        raise UserError(
            f"data.root: {relative(root)} holds no clip ({' '.join(DEMUXERS)}) and no image pair "
            "(NAME_start and NAME_end, .jpg .jpeg .png .webp): put some into it"
        )
    counts = dict(Counter(source.kind for source in found))
    cache = sources.DigestCache(store.root / "digests" / f"{sha256(str(root.resolve()).encode())[:16]}.json")
    paths = [path for source in found for path in source.paths]
    digests: dict[str, str] = {}
    for path in progress(paths, "captions digests", len(paths)):
        try:
            digests[path] = cache.digest(root / path)
        except OSError as error:  # no permission, a disk that fails, or gone since the folder was listed
            findings.append(Finding("unreadable", path, unopened(error)))
    cache.save()
    limits = Limits(data.max_pixels, data.max_frames, data.max_seconds)
    facts, unreadable = probe_files(Filling(store, "captions"), root, digests, limits)
    findings += unreadable
    found = [source for source in found if all(path in facts for path in source.paths)]
    content_ids = {source.name: source.content_id(digests) for source in found}
    for source in found:
        findings += checks.check_source(source, facts, params, extract, pair)
    findings += checks.check_copies(found, content_ids)
    gathered = captions.gather(root, names, found, content_ids)
    findings += gathered.findings
    check_columns(pair, MEASURES, {name for named in gathered.columns.values() for name in named})
    findings += checks.check_captions(gathered, found, content_ids, params, length)
    of_videos, stray = tracks.find(names, found)
    given, unreadable = tracks.read(root, of_videos, facts)
    findings += stray + unreadable
    severities: dict[str, str] = dict(params.severities)
    if extract.on_error == "skip":
        for rule in ("unreadable", "unsupported-codec", "over-limit"):
            severities.setdefault(rule, "warning")
    silent = left_out(findings, severities, ORDER)
    issues = judge(findings, severities)
    return Inputs(found, digests, facts, content_ids, gathered, issues, counts, given, silent)


def probe_files(
    filling: Filling, root: Path, digests: Mapping[str, str], limits: Limits
) -> tuple[dict[str, Facts], list[Finding]]:
    """Facts of each file, one cell a content, and why a file has none."""
    cells = {path: facts_cell(path, digest) for path, digest in digests.items()}
    by_key = {cell.key: path for path, cell in cells.items()}

    def probe(cell: Cell) -> Computed:
        path = by_key[cell.key]
        is_video = Path(path).suffix.lower() in DEMUXERS
        verdict: dict[str, Any]
        picture = b""
        try:
            facts, image = (peek_video if is_video else peek_image)(root / path, limits)
            verdict, picture = vars(facts), thumbnail(image)
        except OverLimit as reason:  # other limits may let it through: not kept
            over[cell.key] = str(reason)
            return
        except OSError as error:  # it has become so since its digest was taken: not kept
            lost[cell.key] = unopened(error)
            return
        except Unreadable as reason:
            verdict = {"rule": "unsupported-codec" if isinstance(reason, Unsupported) else "unreadable"}
            verdict["reason"] = str(reason)
        yield cell, picture, verdict

    over: dict[str, str] = {}
    lost: dict[str, str] = {}
    filling.fill(list(cells.values()), probe)
    filling.close()
    known: dict[str, Facts] = {}
    findings = []
    for path, cell in cells.items():
        if cell.key in over:
            findings.append(Finding("over-limit", path, over[cell.key]))
            continue
        stored = filling.store.peek(cell.kind, cell.key)
        if stored is None:
            findings.append(Finding("unreadable", path, lost.get(cell.key, "could not be probed: run again")))
            continue
        meta = stored.meta
        if "reason" in meta:
            findings.append(Finding(meta["rule"], path, meta["reason"]))
        elif (reason := beyond(facts_of := Facts(**meta), limits)) is not None:
            findings.append(Finding("over-limit", path, reason))
        else:
            known[path] = facts_of
    return known, findings


def beyond(facts: Facts, limits: Limits) -> str | None:
    """Why facts that other limits let through exceed these."""
    if facts.width * facts.height > limits.max_pixels:
        return f"is {facts.width}x{facts.height} pixels; data.max_pixels is {limits.max_pixels}"
    if facts.duration > limits.max_seconds:
        return f"lasts {facts.duration:.0f} s; data.max_seconds is {limits.max_seconds:g}"
    if facts.num_frames > limits.max_frames:
        return f"has {facts.num_frames} frames; data.max_frames is {limits.max_frames}"
    return None


def facts_cell(path: str, digest: str) -> Cell:
    """The cell of a file's facts, or of the reason why it has none."""
    inputs = {
        "digest": digest,
        "suffix": Path(path).suffix.lower(),
        "code": source_digest("framelora.media.probe"),
        "versions": versions("av", "pillow"),
    }
    return Cell("captions/facts", digest, inputs)


def show(inputs: Inputs, *, all_levels: bool = False) -> None:
    """Print issues on stderr: errors and warnings, or all; of one rule the first few. What is left out for a rule that
    is not printed is counted."""
    shown: Counter[str] = Counter()
    for issue in inputs.issues:
        if issue.severity != "info" or all_levels:
            shown[issue.rule] += 1
            if shown[issue.rule] <= SHOWN:
                warn(f"{issue.severity}: {issue.where}: {issue.message} [{issue.rule}]")
    for rule, number in shown.items():
        if number > SHOWN:
            warn(f"... and {number - SHOWN} more of {rule}")
    infos = [Finding(issue.rule, issue.where, "") for issue in inputs.issues if issue.severity == "info"]
    quiet = {} if all_levels else left_out(infos, {}, ())
    if quiet:
        warn(f"info: not used: {listed(quiet)} (`framelora validate --all` names them)")
    if inputs.left_out:
        warn(f"warning: {not_told(inputs)}")


def not_told(inputs: Inputs) -> str:
    """What is not used for rules that are off, in a line."""
    return f"not used, though captions.severities turns the rule off: {listed(inputs.left_out)}"


def listed(counts: Mapping[str, int]) -> str:
    """Numbers by rule: `1 half-pair, 2 unreadable`."""
    return ", ".join(f"{count} {rule}" for rule, count in sorted(counts.items()))


def stop_at_errors(issues: list[Issue]) -> None:
    """Raise `UserError` with the first error."""
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        message = f"{errors[0].where}: {errors[0].message}{more}"
        raise UserError(f"{message}; mend the data (reports/captions/issues.csv lists all)")
