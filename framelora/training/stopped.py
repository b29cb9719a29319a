"""A note of a training that stopped: it leaves no adapter, and no page could be made of it.

No out: `framelora compare` reads `reports/stopped.json`, and the page of the run before says so by `reports/run.js`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framelora import files
from framelora.console import UserError

NOTE = Path("reports/stopped.json")
SCRIPT = Path("reports/run.js")
PARAMS = Path("params.yaml")


@contextmanager
def noting_a_stop() -> Iterator[None]:
    """Write down why the training in here stopped, if it does; else remove what an earlier one wrote."""
    NOTE.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        # A run under other parameters is another run: then the note says nothing of the workspace.
        files.write_json(NOTE, {"reason": str(error), "params": files.file_digest(PARAMS)})
        files.write_text(SCRIPT, stopped_script(str(error)))
        raise


def read_stop() -> str | None:
    """Why the training of the workspace's parameters stopped, if it did."""
    if not NOTE.is_file():
        return None
    note = files.read_json(NOTE)
    return str(note["reason"]) if note["params"] == files.file_digest(PARAMS) else None


def stopped_script(reason: str) -> str:
    """A script that says why the last training stopped, in the place of the costs of the run that the page shows."""
    return f"window.framelora = {json.dumps({'page': None, 'stopped': reason})};\n"
