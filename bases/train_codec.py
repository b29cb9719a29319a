"""Train tiny-framer's codec on clips of the procedural world and write it to `BASE/vae`, in three parts.

1. `--linear-steps`: a linear convolutional codec (2x2 patches to 4 channels and back, with neighbours) is fitted by
   gradient descent. It learns to put smooth colour and fine detail into the same channels at different frequencies,
   which principal components of patches cannot, and takes seconds.
2. It is written into the weights of `AutoencoderKLTemporalDecoder`, whose residual branches start at zero: the network
   computes what the linear codec does.
3. `--steps`, none by default: the decoder alone is trained on true clips of 3 to 9 frames. The encoder stays, so that
   latents do not change. Without this part the temporal branches are zero and each frame is decoded by itself.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLTemporalDecoder
from layout import BASE, SEED, TRUNK_SCALE, build_vae, parameter_groups, save_part, vae_trunk
from loop import Minutes, SaveEvery, Schedule, one_thread, train
from torch import Tensor, nn
from torch.nn import functional
from world import build_textures, photograph_folder, sample_clip

LENGTHS = (5, 5, 3, 5, 7, 5, 9)  # frames of the clip of step 0, 1, 2, ...
AMPLITUDE = 0.05  # of the signal behind the last norms: they are linear to about its square
POSTERIOR_LOG_VARIANCE = -8.0


def to_signal(frames: np.ndarray) -> Tensor:
    """uint8 `[..., H, W, 3]` to float `[..., 3, H, W]` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 127.5 - 1


def decibels(squared_error: float) -> float:
    """PSNR of a mean squared error of signals in -1..1."""
    return -10 * math.log10(squared_error / 4)


class LinearCodec(nn.Module):
    """The linear codec: `[N, 3, H, W]` to `[N, 4, H/2, W/2]` and back, by convolutions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(12, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 24, 3, padding=1)
        self.sharpen = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.paint = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Reconstruct, with noise of 2 % on the latents so that no channel fades."""
        latents = self.encode(functional.pixel_unshuffle(signal, 2))
        noise = torch.randn(latents.shape, generator=generator)
        latents = latents + 0.02 * latents.detach().std() * noise
        return self.paint(self.sharpen(functional.interpolate(self.expand(latents), scale_factor=2.0)))


def fit_linear(data: Tensor, steps: int, seed: int, peak: float = 4e-3) -> LinearCodec:
    """Fit the linear codec to frames `[N, 3, H, W]`, starting at the principal components of their 2x2 patches."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    codec = LinearCodec()
    patches = functional.pixel_unshuffle(data, 2).movedim(1, -1).flatten(0, -2)
    vectors = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors
    with torch.no_grad():
        codec.encode.weight.mul_(0.2)[..., 1, 1] += vectors[:, -4:].T
    optimizer = torch.optim.Adam(codec.parameters(), lr=peak)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * (1 - step / steps)
        batch = data[torch.randint(len(data), (4,), generator=generator)]
        error = (codec(batch, generator) - batch).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"linear step {step + 1} psnr {decibels(error.item()):.2f} dB", file=sys.stderr, flush=True)
    return codec


@torch.no_grad()
def transplant(codec: LinearCodec, vae: AutoencoderKLTemporalDecoder, data: Tensor) -> None:
    """Write the linear codec into a codec built by `build_vae`; latents get the standard deviation 1/scaling_factor.

    A signal goes through the trunk as a pair of opposite channels, 2k and 2k+1: the mean of the pair, which its norm
    removes, is 0, and silu(z) - silu(-z) = z, so that the path is linear.
    """
    encoder, decoder, scale = vae.encoder, vae.decoder, TRUNK_SCALE["vae"]
    latents = codec.encode(functional.pixel_unshuffle(data, 2))
    gain = 1 / (vae.config.scaling_factor * float(latents.std()))
    centre = latents.mean(dim=(0, 2, 3), keepdim=True)

    for parameter in (encoder.conv_in.weight, encoder.conv_in.bias):
        parameter[:3] = 0
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = scale
    down = encoder.down_blocks[0].downsamplers[0].conv
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    for index in range(12):
        colour, row, column = index // 4, index % 4 // 2, index % 2
        down.weight[2 * index : 2 * index + 2] = 0
        down.weight[2 * index, colour, row, column] = AMPLITUDE
        down.weight[2 * index + 1, colour, row, column] = -AMPLITUDE
        encoder.conv_out.weight[:4, 2 * index] = codec.encode.weight[:, index] / AMPLITUDE * gain
        encoder.conv_out.weight[:4, 2 * index + 1] = -codec.encode.weight[:, index] / AMPLITUDE * gain
    encoder.conv_out.bias[:4] = (codec.encode.bias - centre.flatten()) * gain
    vae.quant_conv.weight.copy_(torch.eye(8)[..., None, None])
    vae.quant_conv.bias.zero_()
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = POSTERIOR_LOG_VARIANCE

    wide = len(codec.expand.weight)
    decoder.conv_in.weight[:wide] = codec.expand.weight * (scale / gain)
    decoder.conv_in.bias[:wide] = scale * (codec.expand.bias + codec.expand.weight.sum((2, 3)) @ centre.flatten())
    up = decoder.up_blocks[0].upsamplers[0].conv
    features = codec.sharpen(functional.interpolate(codec.expand(latents), scale_factor=2.0))
    sizes = features.std(dim=(0, 2, 3))
    decoder.conv_out.weight.mul_(0.01)
    for index, size in enumerate(sizes.tolist()):
        taps = torch.zeros_like(up.weight[0])
        taps[:wide] = codec.sharpen.weight[index] * (AMPLITUDE / size)
        up.weight[2 * index], up.weight[2 * index + 1] = taps, -taps
        decoder.conv_out.weight[:, 2 * index] = codec.paint.weight[:, index] * (size / AMPLITUDE)
        decoder.conv_out.weight[:, 2 * index + 1] = -codec.paint.weight[:, index] * (size / AMPLITUDE)
    decoder.conv_out.bias.copy_(codec.paint.bias)
    decoder.time_conv_out.bias.zero_()
    decoder.time_conv_out.weight.zero_()
    decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)


def sample_batch(step: int, textures: list[np.ndarray], seed: int) -> Tensor:
    """The clip of one step, `[1, F, 3, 64, 96]`: a pure function of seed and step."""
    rng = np.random.default_rng([seed, step])
    return to_signal(sample_clip(rng, textures, LENGTHS[step % len(LENGTHS)])[0])[None]


def decoder_error(vae: AutoencoderKLTemporalDecoder, clips: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of clips `[B, F, 3, H, W]` through the codec, latents sampled from the encoder's posterior."""
    flat = clips.flatten(0, 1)
    with torch.no_grad():
        posterior = vae.encode(flat).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
    return (vae.decode(latents, num_frames=clips.shape[1]).sample - flat).square().mean()


def frames_for_fit(textures: list[np.ndarray], count: int, seed: int) -> Tensor:
    """`count` frames of the world, two of each scene, `[N, 3, 64, 96]`."""
    rng = np.random.default_rng([seed, 999])
    return torch.cat([to_signal(sample_clip(rng, textures, 2)[0]) for _ in range(count // 2)])


def main(
    base: Path = BASE,
    linear_steps: int = 2000,
    steps: Annotated[int, typer.Option(help="of the decoder; the shipped weights took none")] = 0,
    minutes: Minutes = 0,
    peak: float = 1e-4,
    seed: int = SEED,
    save_every: SaveEvery = 100,
) -> None:
    """Fit the linear codec, write it into the network, then train the decoder for `steps` steps or for `minutes`."""
    one_thread()
    textures = build_textures(seed, photographs=photograph_folder())
    data = frames_for_fit(textures, 800, seed)
    vae = build_vae(seed)
    transplant(fit_linear(data, linear_steps, seed), vae, data)
    save_part(vae, base / "vae")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int, progress: float) -> Tensor:
        return decoder_error(vae, sample_batch(step, textures, seed), generator)

    def save(average: nn.Module) -> None:
        save_part(average, base / "vae")

    groups = parameter_groups(vae, vae_trunk, TRUNK_SCALE["vae"] * AMPLITUDE)
    taken = train(vae, groups, loss, save, Schedule(steps, peak, minutes, save_every, decay=0.98))
    print(f"codec: {linear_steps} linear steps, {taken} decoder steps", flush=True)


if __name__ == "__main__":
    typer.run(main)
