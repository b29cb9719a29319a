"""What is checked before anything is decoded: one table of rules, each with its severity and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
ORDER: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Rule:
    """Something that can be wrong. An `error` stops the pipeline before anything is decoded."""

    name: str
    severity: Severity  # `captions.severities` can change it
    about: str
    fix: str


@dataclass(frozen=True, order=True)
class Finding:
    """A rule that a file, a row or a caption breaks."""

    rule: str
    where: str  # file under data.root, with the row or line where there is one
    message: str


@dataclass(frozen=True)
class Issue:
    """A finding as it is reported."""

    severity: Severity
    rule: str
    where: str
    message: str
    fix: str


TABLE: tuple[tuple[str, Severity, str, str], ...] = (
    # Files
    ("unreadable", "error", "the file can't be read, or is not what its name says", "replace, remove or chmod it"),
    ("unsupported-codec", "error", "no decoder for the video stream", "convert it, for example to H.264"),
    ("over-limit", "error", "more pixels, frames or seconds than data.max_* allow", "cut it, or raise the limit"),
    ("unsupported-type", "warning", "media of a type that is not read", "convert it to mp4, mkv, jpg or png"),
    ("link-outside", "error", "a link that leads out of data.root is never followed", "copy the file"),
    ("broken-link", "warning", "a link to nothing, or to itself", "remove it, or fetch what it links to"),
    ("link-to-folder", "info", "a link to a folder is not followed", "name the files by their own folder"),
    ("hidden-file", "info", "a file or folder whose name starts with a dot", "rename it if it is data"),
    ("special-file", "warning", "neither a file nor a folder: a pipe, socket or device", "remove it"),
    ("half-pair", "error", "_start without _end, or a half too many", "add the other half, or rename the image"),
    ("pair-sizes", "error", "the two images of a pair differ in size", "make them one size"),
    ("single-image", "warning", "an image that is no half of a pair", "set data.images: true to train on it"),
    ("too-short", "warning", "shorter than captions.min_seconds", "use a longer clip"),
    ("no-window", "warning", "fewer frames than pair.num_frames", "use a longer clip, or lower it"),
    ("too-long", "info", "longer than captions.max_seconds", "nothing: it is cut at its shots; or trim it"),
    ("too-small", "warning", "would be enlarged beyond extract.max_upscale, so it is left out", "use a larger one"),
    ("low-frame-rate", "info", "fewer frames a second than extract.fps", "nothing: it keeps its own rate"),
    ("hdr", "info", "high dynamic range, tone-mapped to BT.709", "grade it yourself if the look matters"),
    ("interlaced", "info", "interlaced, so it is deinterlaced", "nothing"),
    ("alpha", "warning", "has transparency, which is dropped", "flatten it onto the background you want"),
    ("same-content", "info", "the same bytes as another file: one content with two names", "remove one"),
    ("other-file", "info", "neither media nor captions", "nothing"),
    # Metadata
    ("metadata-unreadable", "error", "a metadata file or .txt can't be read or parsed", "mend or remove it"),
    ("encoding", "error", "text that is not UTF-8", "save it as UTF-8"),
    ("metadata-row", "error", "a row without a path, or with a value of a wrong type", "mend the row"),
    ("path-not-relative", "error", "an address, an absolute path or backslashes", "write it relative, with /"),
    ("path-outside", "error", "a path that leaves data.root", "move the file into data.root"),
    ("path-missing", "error", "a path that names no file", "add the file, or remove the row"),
    ("wrong-type", "error", "`type` says video and the file is an image, or the reverse", "mend or drop `type`"),
    ("row-without-source", "warning", "a row for a file that is not used", "remove the row"),
    ("duplicate-row", "warning", "several rows for one clip or image", "keep one"),
    ("conflicting-captions", "error", "one content with different captions", "keep one caption"),
    ("conflicting-columns", "error", "one content with different values in a column", "keep one value"),
    ("caption-column", "warning", "captions in a column that is not called `text`", "rename the column to `text`"),
    ("stray-sidecar", "warning", "a .txt beside no clip or image", "rename it to its clip's name, or remove it"),
    # Tracks
    ("tracks-unreadable", "error", "a file of tracks that can't be used", "mend or remove it (docs/data.md)"),
    ("stray-tracks", "warning", "a file of tracks beside no video, or beside several", "rename or remove it"),
    # Captions
    ("no-caption", "info", "no caption anywhere", "add NAME.txt or a metadata row"),
    ("empty-caption", "warning", "a caption of nothing but spaces", "write it, or remove the row"),
    ("short-caption", "warning", "shorter than captions.min_tokens", "describe what is seen and what moves"),
    ("long-caption", "warning", "longer than captions.max_tokens", "shorten it"),
    ("repeated-caption", "warning", "one text (digits aside) for many contents", "say what sets each apart"),
    ("control-characters", "warning", "control or invisible characters", "remove them"),
    ("mixed-encodings", "warning", "looks like UTF-8 read as Latin-1, or lost characters", "write it anew"),
    ("placeholder", "warning", "a placeholder, or the file's own name", "write a caption"),
)
RULES = {row[0]: Rule(*row) for row in TABLE}
# What breaks these is not used: a file, a row, a caption. That is counted in a line where the rule itself is not shown.
LEAVE_OUT = frozenset(
    {"unreadable", "unsupported-codec", "over-limit", "unsupported-type", "link-outside", "broken-link"}
    | {"link-to-folder", "hidden-file", "special-file", "half-pair", "single-image", "too-small"}
    | {"metadata-unreadable", "encoding", "metadata-row", "path-not-relative", "path-outside", "path-missing"}
    | {"row-without-source", "conflicting-captions", "conflicting-columns", "stray-sidecar"}
    | {"tracks-unreadable", "stray-tracks"}
)


def left_out(findings: Iterable[Finding], severities: Mapping[str, str], shown: Iterable[str]) -> dict[str, int]:
    """How many files, rows and captions are not used for rules whose findings are not shown, by rule.

    Args:
        findings, severities: as in `judge`.
        shown: severities of which each finding is shown.
    """
    counts: dict[str, int] = {}
    for rule, _ in sorted({(finding.rule, finding.where) for finding in findings}):
        if rule in LEAVE_OUT and severities.get(rule, RULES[rule].severity) not in shown:
            counts[rule] = counts.get(rule, 0) + 1
    return counts


def unopened(error: OSError) -> str:
    """What to say of a file that the system does not give: why, and what to do."""
    return f"can't be read ({error.strerror or error}): make it readable (chmod u+r), or remove it"


def judge(findings: Iterable[Finding], severities: Mapping[str, str]) -> list[Issue]:
    """The issues to report: worst first, then by place.

    Args:
        findings: what was found.
        severities: severities that replace those of the table; `off` drops a rule's findings.
    """
    issues = []
    for finding in set(findings):
        rule = RULES[finding.rule]
        wanted = severities.get(rule.name, rule.severity)
        issues += [
            Issue(severity, rule.name, finding.where, finding.message, rule.fix)
            for severity in ORDER
            if severity == wanted
        ]
    return sorted(issues, key=lambda issue: (ORDER.index(issue.severity), issue.rule, issue.where, issue.message))
