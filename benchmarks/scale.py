"""How captions, extract and pair grow with the number of clips.

python benchmarks/scale.py [--counts 1000 10000]

Small synthetic clips (one tiny H.264 file, made different by a comment in each), For each count:
seconds and peak memory of each stage with a cold store, with all cells there, and after one clip was added.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("captions", "extract", "pair")


def make_clip() -> bytes:
    """A clip of 1.5 s, 64x64 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        source = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=8:duration=1.5"]
        codec = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *source, *codec, str(path)], check=True)
        return path.read_bytes()


def add_clip(folder: Path, number: int, clip: bytes) -> None:
    """Write a clip of another content: a `free` box with its number behind the others."""
    comment = f"clip {number:08d}".encode()
    path = folder / f"{number // 1000:03d}/{number:06d}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip + (8 + len(comment)).to_bytes(4, "big") + b"free" + comment)
    path.with_suffix(".txt").write_text(f"Bars of colour and a counter that runs, take {number}.")


def used() -> float:
    """CPU seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(project: Path) -> tuple[list[tuple[float, float]], float]:
    """Seconds and CPU seconds of each stage, and the greatest peak memory of any process in MiB."""
    environment = {**os.environ, "PYTHONPATH": str(project)}
    seconds = []
    for stage in STAGES:
        start, before = time.perf_counter(), used()
        command = [sys.executable, "-m", f"stages.{stage}"]
        subprocess.run(command, cwd=project, check=True, env=environment, capture_output=True)
        seconds.append((time.perf_counter() - start, used() - before))
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def make_project(project: Path, count: int, clip: bytes) -> None:
    """A checkout with so many clips."""
    shutil.copytree(ROOT / "framelora", project / "framelora")
    shutil.copytree(ROOT / "stages", project / "stages")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["data"]["root"] = "clips"
    params["extract"]["buckets"] = ["64x64"]
    params["pair"]["leak_bits"] = -1  # all clips show the same
    with (project / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    for number in range(count):
        add_clip(project / "clips", number, clip)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    arguments = parser.parse_args()
    clip = make_clip()
    totals: dict[tuple[int, str], tuple[float, float]] = {}
    print("seconds (of CPU)")
    print("clips   run             captions         extract            pair           total  peak MiB")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            project = Path(folder)
            make_project(project, count, clip)
            for name in ("first", "again", "one more"):
                if name == "one more":
                    add_clip(project / "clips", count, clip)
                seconds, peak = run(project)
                wall, cpu = (sum(column) for column in zip(*seconds, strict=True))
                totals[count, name] = wall, cpu
                shown = "".join(f"{one:8.1f} ({other:5.1f})" for one, other in [*seconds, (wall, cpu)])
                print(f"{count:6d}  {name:8s}{shown}{peak:10.0f}", flush=True)
        shares = [
            100 * one / whole for one, whole in zip(totals[count, "one more"], totals[count, "first"], strict=True)
        ]
        print(f"one more clip takes {shares[0]:.1f} % of the first run ({shares[1]:.1f} % of its CPU time)", flush=True)
    for name in ("first", "again"):
        few, many = (totals[count, name] for count in (arguments.counts[0], arguments.counts[-1]))
        ratios = [one / other for one, other in zip(many, few, strict=True)]
        print(f"{name}: {ratios[0]:.1f} times the seconds, {ratios[1]:.1f} times the CPU time")


if __name__ == "__main__":
    main()
