"""Fit tiny-framer's codec to frames of the procedural world and write it to `BASE/vae`, in two parts.

1. A linear convolutional codec (4x4 pixels to 8 channels and back, with neighbours) is fitted by gradient descent from
   the principal components of patches. It learns to put smooth colour and fine detail into the same channels at
   different frequencies, which components of patches cannot.
2. It is written into the weights of `AutoencoderKLTemporalDecoder`, whose residual branches, temporal ones too, stay at
   zero: the network computes what the linear codec does, each frame by itself.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLTemporalDecoder
from layout import BASE, SEED, build_vae, save_part
from loop import learning_rate, one_thread
from torch import Tensor, nn
from torch.nn import functional
from world import build_textures, photograph_folder, sample_clip

LATENTS, WIDE, PAIRS = 8, 64, 32  # channels of the latents, of the trunk, and of what passes the last norms
TRUNK_SCALE = 2.0**-7  # of signals before the last norms, so that all weights are numbers that half precision knows
NORM_SCALE = 1e-3  # the square root of the eps of the codec's norms
AMPLITUDE = 0.05  # of the signal behind the last norms: they are linear to about its square
POSTERIOR_LOG_VARIANCE = -8.0


def to_signal(frames: np.ndarray) -> Tensor:
    """uint8 `[..., H, W, 3]` to float `[..., 3, H, W]` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 127.5 - 1


def decibels(squared_error: float) -> float:
    """PSNR of a mean squared error of signals in -1..1."""
    return -10 * math.log10(squared_error / 4)


class LinearCodec(nn.Module):
    """A codec of convolutions alone, to be fitted by `fit_linear`."""

    clip = math.inf  # of the gradient's norm

    def encode(self, signal: Tensor) -> Tensor:
        """Signals `[N, 3, H, W]` to latents."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to signals."""
        raise NotImplementedError

    def start_at_components(self, data: Tensor) -> None:
        """Let the encoder give the principal components of the patches of frames `[N, 3, H, W]`."""
        raise NotImplementedError

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of the fit."""
        raise NotImplementedError


def components(data: Tensor, side: int) -> Tensor:
    """Principal components of square patches of frames, in rows, the strongest first."""
    patches = functional.pixel_unshuffle(data, side).movedim(1, -1).flatten(0, -2)
    return torch.linalg.eigh(torch.cov(patches.T)).eigenvectors.flip(1).T


class QuarterCodec(LinearCodec):
    """Frames to latents `[N, 8, H/4, W/4]` and back, by the convolutions that the network has."""

    clip = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.first_down = nn.Conv2d(3, WIDE, 3, stride=2)
        self.second_down = nn.Conv2d(WIDE, PAIRS, 3, stride=2)
        self.squeeze = nn.Conv2d(PAIRS, LATENTS, 3, padding=1)
        self.expand = nn.Conv2d(LATENTS, WIDE, 3, padding=1)
        self.first_up = nn.Conv2d(WIDE, WIDE, 3, padding=1)
        self.second_up = nn.Conv2d(WIDE, PAIRS, 3, padding=1, bias=False)
        self.paint = nn.Conv2d(PAIRS, 3, 3, padding=1)

    def features(self, signal: Tensor) -> Tensor:
        """What the encoder's last convolution reads, `[N, PAIRS, H/4, W/4]`; padded as diffusers' `Downsample2D`."""
        halved = self.first_down(functional.pad(signal, (0, 1, 0, 1)))
        return self.second_down(functional.pad(halved, (0, 1, 0, 1)))

    def encode(self, signal: Tensor) -> Tensor:
        """Signals to latents."""
        return self.squeeze(self.features(signal))

    def details(self, latents: Tensor) -> Tensor:
        """What the decoder's last convolution reads, `[N, PAIRS, H, W]`."""
        doubled = self.first_up(functional.interpolate(self.expand(latents), scale_factor=2.0))
        return self.second_up(functional.interpolate(doubled, scale_factor=2.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to signals."""
        return self.paint(self.details(latents))

    @torch.no_grad()
    def start_at_components(self, data: Tensor) -> None:
        """Let the encoder give the principal components of 4x4 patches, centred."""
        vectors = components(data, 4)
        for convolution in (self.first_down, self.second_down, self.squeeze):
            convolution.weight.mul_(0.1)
            convolution.bias.zero_()
        for index in range(12):  # colour, row, column of a 2x2 patch
            self.first_down.weight[index, index // 4, index % 4 // 2, index % 2] += 1
        for index in range(48):  # colour, row, column of a 4x4 patch
            colour, row, column = index // 16, index % 16 // 4, index % 4
            inside = colour * 4 + row % 2 * 2 + column % 2
            self.second_down.weight[:, inside, row // 2, column // 2] += vectors[:PAIRS, index]
        self.squeeze.weight[:, :LATENTS, 1, 1] += torch.eye(LATENTS)
        self.squeeze.bias -= self.encode(data).mean(dim=(0, 2, 3))

    def rate(self, step: int, steps: int) -> float:
        """A chain of five convolutions needs a warm-up and small steps."""
        return learning_rate(step, steps, 1e-3, warm=100)


Codec = TypeVar("Codec", bound=LinearCodec)


def fit_linear(kind: type[Codec], data: Tensor, steps: int, seed: int) -> Codec:
    """Fit a linear codec to frames `[N, 3, H, W]`, with noise of 2 % on the latents so that no channel fades."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    codec = kind()
    codec.start_at_components(data)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = codec.rate(step, steps)
        batch = data[torch.randint(len(data), (4,), generator=generator)]
        latents = codec.encode(batch)
        noise = torch.randn(latents.shape, generator=generator)
        error = (codec.decode(latents + 0.02 * latents.detach().std() * noise) - batch).square().mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), codec.clip)
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"linear step {step + 1} psnr {decibels(error.item()):.2f} dB", file=sys.stderr, flush=True)
    return codec


def write_pairs(target: nn.Conv2d, source: nn.Conv2d, factors: Tensor, scale: float) -> None:
    """Let `target`, whose inputs are `scale` times those of `source`, give each output of that times its factor.

    The next channel gets the opposite of it.
    """
    target.weight.zero_()
    target.bias.zero_()
    width = source.in_channels
    for sign, start in ((1, 0), (-1, 1)):
        target.weight[start::2, :width] = sign * source.weight * (factors / scale)[:, None, None, None]
        if source.bias is not None:
            target.bias[start::2] = sign * source.bias * factors


@torch.no_grad()
def transplant(codec: QuarterCodec, vae: AutoencoderKLTemporalDecoder, data: Tensor) -> None:
    """Write the linear codec into a codec built by `build_vae`; latents get the standard deviation 1/scaling_factor.

    Residual branches are zero, so only the last norm and activation of encoder and decoder lie in the way. A signal
    passes them as a pair of opposite channels, 2k and 2k+1, which are one group of the norm: their mean, which it
    removes, is 0, their size is kept at AMPLITUDE times the square root of its eps, where the norm is nearly a
    constant factor, and silu(z) - silu(-z) = z.
    """
    encoder, decoder = vae.encoder, vae.decoder
    latents = codec.encode(data)
    gain = 1 / (vae.config.scaling_factor * float(latents.std()))

    for part, source in (
        (encoder.down_blocks[0].downsamplers[0].conv, codec.first_down),
        (decoder.conv_in, codec.expand),
        (decoder.up_blocks[0].upsamplers[0].conv, codec.first_up),
    ):
        part.weight.zero_()
        part.weight[:, : source.in_channels] = source.weight
        part.bias.copy_(source.bias * TRUNK_SCALE)
    decoder.conv_in.weight.mul_(TRUNK_SCALE / gain)
    encoder.conv_in.weight.zero_()
    encoder.conv_in.bias.zero_()
    encoder.conv_in.weight[:3, :, 1, 1] = TRUNK_SCALE * torch.eye(3)

    for writer, source, signal, reader, target, factor in (
        (
            codec.second_down,
            encoder.down_blocks[1].downsamplers[0].conv,
            codec.features(data),
            codec.squeeze,
            encoder.conv_out,
            gain,
        ),
        (
            codec.second_up,
            decoder.up_blocks[1].upsamplers[0].conv,
            codec.details(latents),
            codec.paint,
            decoder.conv_out,
            1.0,
        ),
    ):
        sizes = signal.std(dim=(0, 2, 3))
        write_pairs(source, writer, NORM_SCALE * AMPLITUDE / sizes, TRUNK_SCALE)
        outputs = reader.out_channels  # the encoder has as many again, of the posterior's variance
        taps = reader.weight * (sizes * (factor / AMPLITUDE))[None, :, None, None]
        target.weight.zero_()
        target.weight[:outputs, 0::2], target.weight[:outputs, 1::2] = taps, -taps
        target.bias.zero_()
        target.bias[:outputs] = reader.bias * factor
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENTS)[..., None, None])
    vae.quant_conv.bias.zero_()
    vae.quant_conv.weight[LATENTS:] = 0
    vae.quant_conv.bias[LATENTS:] = POSTERIOR_LOG_VARIANCE
    decoder.time_conv_out.bias.zero_()
    decoder.time_conv_out.weight.zero_()
    decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)


def frames_for_fit(textures: list[np.ndarray], count: int, seed: int) -> Tensor:
    """`count` frames of the world, two of each scene, `[N, 3, 64, 96]`."""
    rng = np.random.default_rng([seed, 999])
    return torch.cat([to_signal(sample_clip(rng, textures, 2)[0]) for _ in range(count // 2)])


def main(base: Path = BASE, linear_steps: int = 2500, seed: int = SEED) -> None:
    """Fit the linear codec and write it into the network."""
    one_thread()
    textures = build_textures(seed, photographs=photograph_folder())
    data = frames_for_fit(textures, 1200, seed)
    vae = build_vae(seed)
    transplant(fit_linear(QuarterCodec, data, linear_steps, seed), vae, data[:200])
    save_part(vae.half(), base / "vae")
    print(f"codec: {linear_steps} steps", flush=True)


if __name__ == "__main__":
    typer.run(main)
