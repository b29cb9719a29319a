"""The command line of `framelora interpolate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from framelora.console import command, relative, say


class Scheduler(StrEnum):
    """Names of samplers."""

    EULER = "euler"
    DPM = "dpm++"
    LCM = "lcm"


@command
def interpolate_command(
    start: Annotated[Path, typer.Argument(help="First frame: an image.")],
    end: Annotated[Path, typer.Argument(help="Last frame: an image of the same size.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".mp4, .gif, .webp, or a folder for PNGs.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without one the base renders.")] = None,
    weight: Annotated[float, typer.Option(help="Weight of the adapter; multiplies alpha / rank.")] = 1.0,
    frames: Annotated[int | None, typer.Option(min=3, help="Frames, with both ends  [pair.num_frames]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps  [render.num_inference_steps]")] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="Sampler  [the family's render.scheduler]")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frame rate of the clip  [render.video_fps]")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT  [nearest of extract.buckets]")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help='Where a point goes, "x,y x,y ..." in pixels of START; repeatable.')
    ] = None,
    control_scale: Annotated[float, typer.Option(help="Strength of the tracks.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the weights first.")] = False,
    base: Annotated[Path | None, typer.Option(help="Base model's folder  [model.base]")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Render the frames between two images."""
    from framelora.commands.interpolate import interpolate  # torch takes seconds to import

    clip = interpolate(
        start,
        end,
        output,
        base=base,
        adapter=adapter,
        weight=weight,
        frames=frames,
        steps=steps,
        scheduler=scheduler.value if scheduler else None,
        fps=fps,
        size=size,
        tracks=track or (),
        control_scale=control_scale,
        seed=seed,
        merge=merge,
        dtype=dtype,
    )
    say(f"wrote {relative(output)}: {len(clip)} frames, {clip.shape[2]}x{clip.shape[1]}")
