"""How captions, extract and pair grow with the number of clips.

python benchmarks/scale.py [--counts 1000 10000]

Small synthetic clips, each of other pictures, so that pair looks for leaks as it does among real ones. For each count:
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

import cv2
import numpy as np
from ruamel.yaml import YAML

from framelora.media.preview import encode_mp4

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("captions", "extract", "pair")


def make_clip(number: int) -> bytes:
    """A clip of 1.5 s, 64x64 pixels: a texture of its own that moves to the left."""
    texture = np.random.default_rng(number).integers(16, 240, (8, 32), np.uint8)
    wide = np.repeat(cv2.resize(texture, (256, 64))[..., None], 3, axis=2)
    return encode_mp4(np.stack([wide[:, 4 * tick : 4 * tick + 64] for tick in range(12)]), 8)


def add_clip(folder: Path, number: int) -> None:
    """Write a clip and its caption."""
    path = folder / f"{number // 1000:03d}/{number:06d}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_clip(number))
    path.with_suffix(".txt").write_text(f"Light and dark that move to the left, take {number}.")


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


def make_project(project: Path, count: int) -> None:
    """A checkout with so many clips."""
    shutil.copytree(ROOT / "framelora", project / "framelora")
    shutil.copytree(ROOT / "stages", project / "stages")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["data"]["root"] = "clips"
    params["extract"]["buckets"] = ["64x64"]
    with (project / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    for number in range(count):
        add_clip(project / "clips", number)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    arguments = parser.parse_args()
    totals: dict[tuple[int, str], tuple[float, float]] = {}
    print("seconds (of CPU)")
    print("clips   run             captions         extract            pair           total  peak MiB")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            project = Path(folder)
            make_project(project, count)
            for name in ("first", "again", "one more"):
                if name == "one more":
                    add_clip(project / "clips", count)
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
