"""`framelora generate`: a clip from text, a first frame, or both ends, with adapters at their weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np
import typer

from framelora import files
from framelora.commands.adapters import Workbench, bad_adapters, parse_weighted
from framelora.console import UserError, command, relative, say, warn
from framelora.params import rounding_choice
from framelora.schema.easyanimate import EasyAnimate, MemoryMode
from framelora.source import load_part

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from framelora.adapters.state import LoraState

app = typer.Typer()


def parse_size(text: str, side: int) -> tuple[int, int]:
    """`WIDTHxHEIGHT` in pixels. Raises `UserError` unless both are multiples of a side."""
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise UserError(f"--size {text}: write WIDTHxHEIGHT, for example 672x384") from None
    if width < side or height < side or width % side or height % side:
        nearest = "x".join(str(max(side, round(value / side) * side)) for value in (width, height))
        raise UserError(f"--size {text}: both sides must be multiples of {side}: {nearest} is near")
    return width, height


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture, scaled to cover a size and cut to it: `[H, W, 3]`. Raises `UserError`."""
    from framelora.media.decode import decode_image
    from framelora.media.probe import NO_FILE_BEYOND, Unreadable

    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        frames: NDArray[np.uint8] = decode_image(path, [f"{size[0]}x{size[1]}"], NO_FILE_BEYOND).frames
    except Unreadable as reason:
        raise UserError(f"{path} {reason}") from None
    return frames[0]


@app.command("generate")
@command
def generate(
    prompt: Annotated[str, typer.Option(help="What the clip shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="An .mp4 file.")],
    image_start: Annotated[Path | None, typer.Option(help="First frame (needs an inpaint base, -InP).")] = None,
    image_end: Annotated[Path | None, typer.Option(help="Last frame (with --image-start).")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="PATH@WEIGHT; may be repeated.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to lead away from.")] = "",
    guidance: Annotated[float | None, typer.Option(help="Else render.guidance_scale.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 43,
    fps: Annotated[int, typer.Option(min=1, help="Frame rate of the file.")] = 8,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "672x384",
    frames: Annotated[int, typer.Option(min=1, help="Rounded to what the base takes.")] = 49,
    memory_mode: Annotated[str | None, typer.Option(help="Else easyanimate.render.memory_mode.")] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model; else model.base.")] = None,
) -> None:
    """Render a clip. Weights of 0.05 to 0.2 suit an adapter that was trained on static clips."""
    if output.suffix != ".mp4":
        raise UserError(f"-o {output}: call it something.mp4")
    if image_end is not None and image_start is None:
        raise UserError("--image-end needs --image-start")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise UserError(f"--guidance {guidance:g}: it must be a finite number from 0, for example 6")
    if memory_mode is not None and memory_mode not in get_args(MemoryMode):
        raise UserError(f"--memory-mode {memory_mode}: choose one of {', '.join(get_args(MemoryMode))}")
    weighted = [parse_weighted(text) for text in adapter or []]
    bench = Workbench(base)
    prompts = load_part_or_refuse(bench.params.model.family)
    with bad_adapters():
        limits = prompts.limits(bench.base)
    width, height = parse_size(size, limits.side)
    count = max(1, round((frames - 1) / limits.frame_step) * limits.frame_step + 1)
    if count != frames:
        say(f"--frames {frames} is rounded to {count}: the base takes multiples of {limits.frame_step}, plus 1")
    if image_start is not None and not limits.takes_images:
        raise UserError(f"--image-start: {relative(bench.base)} renders from text only: use an inpaint base (-InP)")
    ends = [read_image(path, (width, height)) for path in (image_start, image_end) if path is not None]
    if len(ends) == 2 and count < 3:
        raise UserError(f"--frames {frames}: two ends need frames between them")
    states = [(bench.read(path), weight) for path, weight in weighted]

    from framelora.compute import configure_torch
    from framelora.media.preview import encode_mp4

    changes = {"guidance_scale": guidance, "memory_mode": memory_mode}
    section = bench.params.family
    render = section.render.model_copy(update={name: value for name, value in changes.items() if value is not None})
    section = section.model_copy(update={"render": render})
    for (path, _), (state, _) in zip(weighted, states, strict=True):
        if state.dora:
            refuse_lost_dora(path, len(states), section)
    device = configure_torch()
    with bad_adapters():  # also a prompt that is too long
        inputs = prompts.prepare(
            bench.base, section, device, prompt=prompt, negative=negative_prompt, ends=ends, size=(count, height, width)
        )
        renderer: Any = load_part(bench.params.model.family, "render").Renderer(bench.base, section, device)
        for note in renderer.notes:
            warn(note)
        denoiser = renderer.load_denoiser()
        model: Any = with_adapters(denoiser, states) if states else denoiser
    clip = renderer.sample_clip(model, **inputs, size=(count, height, width), num_inference_steps=steps, seed=seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(output, encode_mp4(clip, fps))
    used = "".join(f", {relative(path)} at {weight:g}" for path, weight in weighted)
    say(f"wrote {relative(output)}: {count} frames of {width}x{height}, {steps} steps{used}")


def refuse_lost_dora(path: Path, count: int, section: EasyAnimate) -> None:
    """Raises `UserError` where a DoRA adapter is one of several, or weights are held so that it would be lost."""
    if count > 1:
        raise UserError(f"--adapter {path} is a DoRA adapter, whose change is no low-rank sum: give it alone")
    if rounded := rounding_choice(section.render.dtype, section.render.memory_mode):
        raise UserError(
            f"--adapter {path} is a DoRA adapter, which is written into the weights in fp32: "
            f"easyanimate.render.{rounded} would lose it: set dtype to float32, and memory_mode (--memory-mode) to "
            "none or model_cpu_offload"
        )


def with_adapters(denoiser: nn.Module, states: list[tuple[LoraState, float]]) -> nn.Module:
    """A denoiser with adapters on it, each at its weight; a DoRA is alone. Raises `BadAdapter`."""
    from framelora.adapters.combine import combine
    from framelora.adapters.live import put_on
    from framelora.adapters.lora import set_weight

    state, weight = states[0]
    if not state.dora:
        return put_on(denoiser, combine(states))
    model = put_on(denoiser, state)
    set_weight(model, weight)
    return model


def load_part_or_refuse(family: str) -> Any:
    """The family's part that renders from a prompt. Raises `UserError` for a family that takes none."""
    try:
        return load_part(family, "prompts")
    except ModuleNotFoundError:
        raise UserError(
            f"model.family {family} takes no prompt: set model.family and model.base to a family that does"
        ) from None
