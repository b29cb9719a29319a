"""Names of the things that Framer caches, and which of them a window needs."""

from __future__ import annotations

from framelora.families.base import Window


def end_unit(shot: str, frame: int) -> str:
    """Id of an end frame."""
    return f"{shot}@{frame:05d}"


def units_of(window: Window) -> list[tuple[str, str]]:
    """Units `(kind, unit)` of a window: both ends, and the shot's latents; an image pair has none between its ends."""
    units = [("ends", end_unit(shot, frame)) for shot, frame in window.ends]
    if window.kind == "window":
        units.append(("latents", window.start_shot))
    return units
