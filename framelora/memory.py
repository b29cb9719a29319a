"""How much memory a process has used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """The most memory that this process has had resident, in bytes.

    Linux's `VmHWM` begins anew with the program that a process runs. `getrusage` does not: a process that was started
    by a large one begins with what that had, so it is asked only where there is no /proc.
    """
    try:
        text = STATUS.read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
