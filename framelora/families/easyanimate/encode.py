"""What EasyAnimate caches: VAE posteriors of clips, masked clips for inpaint models, embeddings of captions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKLMagvit
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from framelora.compute import DTYPES
from framelora.digest import draw_seed, sha256
from framelora.families.base import ALL_ROWS, EncodeUnit
from framelora.families.easyanimate.codec import TextEncoder, load_vae
from framelora.families.easyanimate.spec import read_spec
from framelora.families.easyanimate.units import FLIPPED, SCALED
from framelora.media.buckets import centre_crop, cover, nearest_bucket

if TYPE_CHECKING:
    from framelora.schema.easyanimate import EasyAnimate

RENDER_NOISE = 0.0563  # noise on what an inpaint model is given, in pixels of [-1, 1]: diffusers' inpaint pipeline


def to_clip(frames: NDArray[np.uint8]) -> Tensor:
    """RGB frames `[F, H, W, 3]`, 0..255, as a clip `[1, 3, F, H, W]` in [-1, 1]."""
    return (torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1.0)[None]


def scale_down(frames: NDArray[np.uint8], size: str) -> NDArray[np.uint8]:
    """Frames `[F, H, W, 3]` at a smaller `WIDTHxHEIGHT`: scaled to cover it (antialiased bicubic), then cropped."""
    bucket = nearest_bucket(frames.shape[2], frames.shape[1], [size])
    wanted = cover(frames.shape[2], frames.shape[1], bucket)
    scaled = [np.asarray(Image.fromarray(frame).resize(wanted, Image.Resampling.BICUBIC)) for frame in frames]
    return centre_crop(np.stack(scaled), bucket)


class Encoder:
    """VAE and text encoder of a base model; each is built when the first unit asks for it."""

    def __init__(self, base: Path, params: EasyAnimate, device: torch.device) -> None:
        self.base = base
        self.params = params
        self.device = device
        self.spec = read_spec(base)
        self.notes: list[str] = []

    @functools.cached_property
    def vae(self) -> AutoencoderKLMagvit:
        """The VAE."""
        return load_vae(self.base).to(self.device).eval().requires_grad_(False)

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        return TextEncoder(self.base, self.params.encode.max_sequence_length, self.device)

    @torch.no_grad()
    def encode(self, unit: EncodeUnit, frames: NDArray[np.uint8] | None, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """Encode a caption, or a unit's frames `[F, H, W, 3]`.

        Args:
            unit: what is encoded.
            frames: all of the unit; None for a caption.
            rows: all of them: clips and captions are encoded whole.

        Returns:
            For `text`: `embeds` `[L, D]`, and `orders` `[V, L, D]` of the same tags in other orders, if any. For
            `latents`: `mean` and `std` `[C, f, h, w]` of the VAE's posterior. For `masked`: `masked`
            `[1 + C, f, h, w]`: what is kept (1) and masked (0) on the grid of latents, and the mode of the masked
            clip's posterior. Nothing is multiplied by the scaling factor.

        Raises:
            ValueError: a caption is too long for the encoder.
        """
        assert rows == ALL_ROWS
        parts = unit.detail.split("/")
        if frames is not None:
            for part in parts:
                if part.startswith(SCALED):
                    frames = scale_down(frames, part.removeprefix(SCALED))
            frames = np.ascontiguousarray(frames[:, :, ::-1]) if FLIPPED in parts else frames
        if unit.kind == "text":
            truncate = self.params.encode.long_captions == "truncate"
            embeds = [self.text_encoder.embed(text, truncate=truncate) for text in (unit.text, *unit.orders)]
            tensors = {"embeds": embeds[0]} | ({"orders": torch.stack(embeds[1:])} if unit.orders else {})
            self.notes += self.text_encoder.cut
            self.text_encoder.cut.clear()
        elif unit.kind == "latents":
            assert frames is not None
            posterior = self.vae.encode(to_clip(frames).to(self.device)).latent_dist
            tensors = {"mean": posterior.mean[0], "std": posterior.std[0]}
        else:
            tensors = {"masked": self.masked(unit, frames)}
        dtype = DTYPES[self.params.encode.dtype]
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def masked(self, unit: EncodeUnit, frames: NDArray[np.uint8] | None) -> Tensor:
        """Mask a clip and encode what is left of it: `[1 + C, f, h, w]`. Masked pixels are -1, as in EasyAnimate.

        The noise on kept pixels and the mask itself are functions of `mask_seed`, the frames and the unit's detail.
        """
        if frames is None:
            num_frames, height, width = (int(side) for side in unit.detail.split("/")[1].split("x"))
            clip = torch.full((1, 3, num_frames, height, width), -1.0)
            mask = np.ones((num_frames, height, width), np.uint8)
        else:
            count, mode, number, *others = unit.detail.split("/")
            if len(frames) < int(count):
                frames = np.repeat(frames, int(count), axis=0)  # a static clip
            seed = draw_seed("mask", self.params.conditioning.mask_seed, sha256(frames.tobytes()), mode, number)
            mask = draw_mask(mode, int(number), frames.shape[:3], np.random.default_rng(seed))
            kept = torch.from_numpy(mask == 0)[None, None]
            clip = torch.where(kept, to_clip(frames), -1.0)
            if self.spec.condition_noise:
                clip = add_noise(clip, seed, RENDER_NOISE if "render" in others else None)
        latents = self.vae.encode(clip.to(self.device)).latent_dist.mode()[0]
        kept = resize_mask(1.0 - torch.from_numpy(mask).float(), latents.shape[1:]).to(latents)
        return torch.cat([kept[None], latents])


def add_noise(clip: Tensor, seed: int, sigma: float | None) -> Tensor:
    """Add Gaussian noise to a clip in [-1, 1], except to masked values (-1).

    Args:
        clip: `[1, 3, F, H, W]`.
        seed: of the noise.
        sigma: its standard deviation; None draws ln sigma ~ N(-3, 0.5^2), as training does.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = float(torch.exp(-3.0 + 0.5 * torch.randn((), generator=generator)))
    noise = torch.randn(clip.shape, generator=generator) * (drawn if sigma is None else sigma)
    return clip + torch.where(clip == -1.0, 0.0, noise)


def resize_mask(mask: Tensor, latent_shape: torch.Size) -> Tensor:
    """Bring a mask `[F, H, W]` to the grid of latents `[f, h, w]`: the first frame by itself, then the rest."""
    frames, *sides = latent_shape
    parts = [functional.interpolate(mask[None, None, :1], (1, *sides), mode="trilinear", align_corners=False)]
    if frames > 1:
        rest = functional.interpolate(mask[None, None, 1:], (frames - 1, *sides), mode="trilinear", align_corners=False)
        parts.append(rest)
    return torch.cat(parts, dim=2)[0, 0]


def draw_mask(mode: str, number: int, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    """A mask `[F, H, W]`, 1 where a clip is hidden, in one of the original's modes.

    Args:
        mode: `first_frames` and `both_ends` keep `number` frames at the start, or at both ends. The others are drawn: a
            `block` in every frame, `block_in_time` (a block, in a part of the clip), `pixels`, `blocks` (squares),
            an `ellipse` or a `circle` in every frame, `frames` (whole ones).
        number: k of the first two; the drawn ones take it through their seed.
        shape: frames, height, width.
        random: where the drawn ones come from.
    """
    num_frames, height, width = shape
    mask = np.zeros(shape, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    if mode == "first_frames":
        mask[number:] = 1
    elif mode == "both_ends":
        mask[number : num_frames - number] = 1
    elif mode in ("block", "block_in_time"):
        block_height, block_width = (int(random.integers(side // 4, side * 3 // 4 + 1)) for side in (height, width))
        top, left = int(random.integers(0, height - block_height + 1)), int(random.integers(0, width - block_width + 1))
        first, last = 0, num_frames
        if mode == "block_in_time":
            first = int(random.integers(0, num_frames))
            last = int(random.integers(first + 1, num_frames + 1))
        mask[first:last, top : top + block_height, left : left + block_width] = 1
    elif mode == "pixels":
        mask[:] = random.random((height, width)) < random.uniform(0.1, 0.9)
    elif mode == "blocks":
        side = max(1, min(height, width) // 8)
        hidden = random.random((-(-height // side), -(-width // side))) < random.uniform(0.1, 0.9)
        mask[:] = np.kron(hidden, np.ones((side, side), bool))[:height, :width]
    elif mode in ("ellipse", "circle"):
        radii = random.uniform(min(height, width) / 8, min(height, width) / 2, 2)
        if mode == "circle":
            radii[1] = radii[0]
        middle = random.uniform(0, [height, width])
        mask[:] = ((rows - middle[0]) / radii[0]) ** 2 + ((columns - middle[1]) / radii[1]) ** 2 <= 1
    elif mode == "frames":
        mask[random.random(num_frames) < 0.5] = 1
    else:
        raise ValueError(f"no mask mode is called {mode}")
    return mask
