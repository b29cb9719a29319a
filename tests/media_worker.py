"""Probes and decodes files in a process of its own, whose death a test survives.

Reads paths from stdin, one a line, and writes for each a line of JSON: `frames` or `reason`, and at the end its peak
memory. Anything but `Unreadable` ends the process, and so does a file that takes too long or too much memory.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

from framelora.media.decode import decode_image, decode_video
from framelora.media.probe import IMAGE_FORMATS, NO_FILE_BEYOND, Unreadable
from framelora.media.shots import Cutting

SECONDS = 30  # for each file, the decoder's process included; a loaded machine is allowed for
CPU_SECONDS = 10  # for each file, of this process; a decoder's may use as much as all files before it together
MEMORY = 3 << 30  # bytes of address space, of this process and of each decoder's; libraries take 1 GiB of it


def main() -> None:
    """Work through stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cutting = Cutting(black_level=8.0, trim_fades=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        signal.alarm(SECONDS)  # its default action ends the process, wherever it hangs
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        try:
            if path.suffix.lower() in IMAGE_FORMATS:
                shots = [decode_image(path, ["96x64"], NO_FILE_BEYOND)]
            else:
                options = {"target_fps": 8.0, "buckets": ["96x64", "64x96"], "limits": NO_FILE_BEYOND}
                shots = list(decode_video(path, cutting=cutting, **options))
            outcome: dict[str, object] = {"frames": sum(len(shot.frames) for shot in shots)}
        except Unreadable as reason:
            outcome = {"reason": f"{type(reason).__name__}: {reason}"}
        print(json.dumps(outcome), flush=True)
    signal.alarm(0)
    # ru_maxrss of this process would count what its parent had in memory when it started it.
    status = Path("/proc/self/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))  # KiB
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    print(json.dumps({"peak_mib": max(own, children) // 1024}), flush=True)


if __name__ == "__main__":
    main()
