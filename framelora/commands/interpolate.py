"""In-betweens of two images: `framelora interpolate`, and the same as a function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from framelora.adapters.folder import CONFIG, FULL_CONFIG, FULL_WEIGHTS
from framelora.adapters.peft_folder import read_folder
from framelora.adapters.state import BadAdapter, check_fits, linear_shapes, listed
from framelora.compute import DTYPES, configure_torch
from framelora.console import UserError, one_line, relative
from framelora.media.buckets import centre_crop, cover, nearest_bucket
from framelora.media.clip import check_output, write_clip
from framelora.media.probe import IMAGE_FORMATS, Unreadable, open_image
from framelora.params import load_params
from framelora.source import load_part, module_file

Track = Sequence[tuple[float, float]]
POINT = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?),(-?[0-9]+(?:\.[0-9]+)?)")


def interpolate(
    start: Path,
    end: Path,
    output: Path | None = None,
    *,
    params: Path = Path("params.yaml"),
    base: Path | None = None,
    adapter: Path | None = None,
    weight: float = 1.0,
    frames: int | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    fps: int | None = None,
    size: str | None = None,
    tracks: Sequence[str | Track] = (),
    control_scale: float = 1.0,
    control_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    merge: bool = False,
    dtype: str = "float32",
) -> NDArray[np.uint8]:
    """Render the frames between two images, and write them as a clip.

    What is None is what `params.yaml` says.

    Args:
        start, end: images of one size (jpg, png, webp). They are scaled to cover the clip's size and centre-cropped, as
            training does it.
        output: `.mp4`, `.gif`, `.webp`, or a folder for PNGs; None writes nothing.
        params: parameters of the project.
        base: folder of the base model (`model.base`).
        adapter: PEFT folder, or a folder with any of `unet/`, `unet_lora/`, `controlnet/` and `controlnet_lora/` in it,
            as training writes it; None renders the base.
        weight: multiplies the adapter's alpha / rank: 1 is as trained.
        frames: of the clip, with both ends (`pair.num_frames`).
        steps: of the sampler (`render.num_inference_steps`).
        scheduler: `euler`, `dpm++` or `lcm` (the family's `render.scheduler`).
        fps: at which the clip is played (`render.video_fps`).
        size: WIDTHxHEIGHT; None takes the nearest of `extract.buckets`.
        tracks: where points go, each as `"x,y x,y ..."` or as pairs, in pixels of the start image. They need a base or
            an adapter with a ControlNet.
        control_scale: factor of the ControlNet's residuals.
        control_range: shares of the steps between which the ControlNet takes part.
        seed: of all noise.
        merge: merge the adapter into the weights first; the same picture up to rounding, a little faster.
        dtype: of the denoiser: float32, float16 or bfloat16.

    Returns:
        RGB frames `[F, H, W, 3]`, 0..255.

    Raises:
        UserError: something can't be used; one line says what, where and what to do.
    """
    settings = load_params(params)
    family = settings.model.family
    if module_file(f"framelora.families.{family}.pipeline") is None:
        raise UserError(f"model.family {family} has no pipeline between two images: use one that has, such as framer")
    if output is not None:
        check_output(output)
    base = base or Path(settings.model.base)
    part = load_part(family, "pipeline")
    missing = [name for name in part.FILES if not (base / name).is_file()]
    if missing:
        raise UserError(f"{relative(base)} holds no {missing[0]}: name a base model's folder")
    if dtype not in DTYPES:
        raise UserError(f"there is no dtype {dtype}: choose one of {', '.join(DTYPES)}")
    images = [read_image(path) for path in (start, end)]
    if images[0].size != images[1].size:
        sizes = " and ".join(f"{image.width}x{image.height}" for image in images)
        raise UserError(f"{relative(start)} and {relative(end)} differ in size ({sizes}): crop or scale them to one")
    bucket = parse_size(size) if size else nearest_bucket(*images[0].size, settings.extract.buckets)
    points = [place_track(read_track(track), images[0].size, bucket) for track in tracks]

    of_base = bool(points) and not own_controlnet(adapter)
    if of_base and not (base / "controlnet" / FULL_CONFIG).is_file():
        raise UserError(f"{relative(base)} has no controlnet/, which --track needs: name an adapter with one")
    try:
        pipeline: Any = part.Pipeline(base, controlnet=of_base, device=configure_torch(), dtype=DTYPES[dtype])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{relative(base)} can't be read: {one_line(error)}") from None
    if adapter is not None:
        put_on(pipeline, adapter, weight, merge, bool(points))

    conditioning, rendering = settings.family.conditioning, settings.family.render
    num_frames = frames or settings.pair.num_frames
    try:
        clip: NDArray[np.uint8] = pipeline(
            *(fit_image(image, bucket) for image in images),
            width=bucket[0],
            height=bucket[1],
            num_frames=num_frames,
            num_inference_steps=steps or settings.render.num_inference_steps,
            scheduler=scheduler or rendering.scheduler,
            min_guidance_scale=rendering.min_guidance_scale,
            max_guidance_scale=rendering.max_guidance_scale,
            middle_max_guidance=rendering.middle_max_guidance,
            fps=conditioning.fps,
            motion_bucket_id=conditioning.motion_bucket_id,
            noise_aug_strength=conditioning.noise_aug_strength,
            point_tracks=part.interpolate_tracks(points, num_frames) if points else None,
            heatmap_side=settings.family.objective.heatmap_side,
            controlnet_cond_scale=control_scale,
            controlnet_step_range=control_range,
            decode_chunk_size=rendering.decode_chunk_frames,
            generator=torch.Generator().manual_seed(seed),
        )
    except ValueError as error:
        raise UserError(f"{error}") from None
    if output is not None:
        write_clip(output, clip, fps or settings.render.video_fps)
    return clip


def read_image(path: Path) -> Image.Image:
    """Read an image. Raises `UserError` when it is missing, of an unknown kind or damaged."""
    if not path.is_file():
        raise UserError(f"{relative(path)} does not exist: name an image")
    if path.suffix.lower() not in IMAGE_FORMATS:
        raise UserError(f"{relative(path)} is no image by its name: use {', '.join(sorted(IMAGE_FORMATS))}")
    try:
        return open_image(path)
    except Unreadable as reason:
        raise UserError(f"{relative(path)} {reason}: name another image") from None


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises `UserError` when it is none."""
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if match is None:
        raise UserError(f"--size {text}: write it as WIDTHxHEIGHT in pixels, for example 512x320")
    return int(match[1]), int(match[2])


def read_track(track: str | Track) -> list[tuple[float, float]]:
    """Read a track, given as `"x,y x,y ..."` or as points. Raises `UserError` when it is none."""
    if not isinstance(track, str):
        return [(float(x), float(y)) for x, y in track]
    matches = [POINT.fullmatch(word) for word in track.split()]
    if not matches or None in matches:
        raise UserError(f'--track "{track}": write points in pixels as "x,y x,y ...", for example "10,20 60,20"')
    return [(float(match[1]), float(match[2])) for match in matches if match is not None]


def place_track(track: list[tuple[float, float]], size: tuple[int, int], bucket: tuple[int, int]) -> Track:
    """Points of an image of a size as points of the clip, which covers it scaled and centre-cropped.

    Raises:
        UserError: a track without points, or with one outside the image.
    """
    width, height = size
    if not track:
        raise UserError("a track without points: give each at least one")
    for x, y in track:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--track: the point {x:g},{y:g} lies outside the start image ({width}x{height})")
    scaled = cover(width, height, bucket)
    left, top = (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2
    return [(x * scaled[0] / width - left, y * scaled[1] / height - top) for x, y in track]


def fit_image(image: Image.Image, bucket: tuple[int, int]) -> Image.Image:
    """Scale an image to cover a bucket and cut its middle, as images of the training data are."""
    scaled = image.resize(cover(image.width, image.height, bucket), Image.Resampling.BICUBIC)
    return Image.fromarray(centre_crop(np.asarray(scaled)[None], bucket)[0])


def own_controlnet(adapter: Path | None) -> bool:
    """Whether an adapter brings a whole ControlNet of its own."""
    return adapter is not None and (adapter / "controlnet" / FULL_CONFIG).is_file()


def put_on(pipeline: Any, adapter: Path, weight: float, merge: bool, steered: bool) -> None:
    """Put an adapter folder's parts on a pipeline's networks, in every form that training writes.

    Those of a ControlNet are left out where there are no tracks, since it takes no part then.

    Raises:
        UserError: there is no adapter, or it can't be used (see `adapted`).
    """
    denoisers = [folder for folder in (adapter, adapter / "unet_lora") if holds_denoiser(folder)]
    found = {"unet": denoisers[0]} if denoisers else {}
    if (adapter / "controlnet_lora" / CONFIG).is_file():
        found["controlnet"] = adapter / "controlnet_lora"
    if not found and not own_controlnet(adapter):
        raise UserError(
            f"{relative(adapter)} holds no {CONFIG}, unet/, unet_lora/, controlnet/ or controlnet_lora/: name the "
            "folder of an adapter, such as models/adapter"
        )
    if steered and own_controlnet(adapter):
        try:
            pipeline.use_controlnet(adapter)
        except (OSError, ValueError) as error:
            raise UserError(f"{relative(adapter / 'controlnet')} can't be read: {one_line(error)}") from None
    for name, folder in found.items():
        if name == "unet" or steered:
            setattr(pipeline, name, adapted(getattr(pipeline, name), folder, weight, merge))


def holds_denoiser(folder: Path) -> bool:
    """Whether `adapters.lora.load_adapter` finds something in a folder to put on a network."""
    return (folder / "unet").is_dir() or (folder / CONFIG).is_file()


def adapted(network: torch.nn.Module, folder: Path, weight: float, merge: bool) -> torch.nn.Module:
    """A network with an adapter at a weight, live or merged into its layers; or the weights of one trained in full.

    Raises:
        UserError: the adapter is damaged or for another model, or it is a DoRA and the weights are not fp32.
    """
    from framelora.adapters.lora import load_adapter, set_weight

    whole = (folder / "unet").is_dir()
    try:
        if whole:
            check_whole(folder / "unet" / FULL_WEIGHTS, network)
        else:
            state = read_folder(folder)
            check_fits(state, linear_shapes(network), "it")
    except BadAdapter as error:
        raise UserError(f"{relative(folder)} is damaged or for another model: {one_line(error)}") from None
    if not whole and state.dora and next(network.parameters()).dtype != torch.float32:
        raise UserError(
            f"{relative(folder)} is a DoRA adapter, which is written into the weights in fp32: --dtype would round "
            "it away: leave it at float32"
        )
    model = load_adapter(network, folder)
    set_weight(model, weight)
    merged: torch.nn.Module = model.merge_and_unload() if merge and not whole else model
    return merged


def check_whole(path: Path, network: torch.nn.Module) -> None:
    """See that weights trained in full are a network's. Raises `BadAdapter` when they are not."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadAdapter(f"{path.name} can't be read ({error})") from None
    wanted = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    wrong = [name for name, shape in wanted.items() if found.get(name) != shape]
    if wrong:
        raise BadAdapter(f"{path.name} has not the base's {listed(wrong)}")
