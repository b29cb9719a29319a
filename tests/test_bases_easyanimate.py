"""tiny-easyanimate: it loads, it is small, its codec is good, its tokenizer knows the captions, its recipe repeats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BASES = Path(__file__).resolve().parent.parent / "bases"
sys.path.insert(0, str(BASES))

import crossings  # noqa: E402
import layout_easyanimate  # noqa: E402
import train_codec3d  # noqa: E402
import train_transformer  # noqa: E402
import world  # noqa: E402
from evaluate import procedural_clips, psnr  # noqa: E402
from train_codec import fit_linear, frames_for_fit, to_signal  # noqa: E402

from framelora.base_model import fingerprint, verify  # noqa: E402
from framelora.families.easyanimate.spec import read_spec  # noqa: E402

BASE = BASES / "tiny-easyanimate"
CODEC_FLOOR = 34.0  # dB, on the held-out procedural frames below
MEGABYTES = 12


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoders() -> train_transformer.Encoders:
    return train_transformer.Encoders(BASE)


@pytest.fixture(scope="module")
def textures() -> list[np.ndarray]:
    return crossings.pale(world.build_textures(7, count=6))


def test_the_base_is_small_and_is_the_one_its_lock_names() -> None:
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) < MEGABYTES * 1e6
    assert fingerprint(BASE)
    assert verify(BASE) == []


def test_the_family_takes_it_as_an_inpaint_model() -> None:
    spec = read_spec(BASE)
    assert (spec.inpaint, spec.latent_channels, spec.spatial_ratio, spec.temporal_ratio) == (True, 4, 2, 1)


def test_configs_name_no_folder() -> None:
    assert not [file for file in BASE.rglob("*config.json") if json.loads(file.read_text()).get("_name_or_path")]


def test_the_codec_reaches_its_floor_on_held_out_clips(encoders: train_transformer.Encoders) -> None:
    signals = [to_signal(clip) for clip in procedural_clips(3, (4.0, 24.0))]
    values = [psnr(encoders.decode(encoders.latents(signal)), signal) for signal in signals]
    assert float(np.mean(values)) >= CODEC_FLOOR


def test_latents_of_a_still_clip_are_those_of_its_frame(encoders: train_transformer.Encoders) -> None:
    frame = to_signal(procedural_clips(1, (4.0, 24.0))[0])[:1]
    assert torch.equal(encoders.latents(frame.repeat(5, 1, 1, 1)), encoders.latents(frame).expand(-1, 5, -1, -1))


def test_the_tokenizer_knows_every_word_of_the_captions(encoders: train_transformer.Encoders) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        caption = world.sample_scene(rng, 6).caption
        tokens = encoders.tokenizer.tokenize(caption)
        assert " ".join(tokens).replace(" ,", ",") == caption
    assert "[UNK]" not in encoders.tokenizer.tokenize("Any other (unknown) WORD: 42!")


def test_captions_fit_and_are_told_apart(encoders: train_transformer.Encoders) -> None:
    red, blue = encoders.text("a red disc moves left"), encoders.text("a blue disc moves left")
    assert red.shape == (layout_easyanimate.TEXT_LENGTH, layout_easyanimate.TEXT_CONFIG["hidden_size"])
    assert float((red - blue).norm() / red.norm()) > 0.1


def test_held_out_captions_are_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    assert not any(crossings.is_held_out(*crossings.draw_names(rng, False)) for _ in range(100))
    assert all(crossings.is_held_out(*crossings.draw_names(rng, True)) for _ in range(20))


def test_a_crossing_shows_what_its_caption_says(textures: list[np.ndarray]) -> None:
    scene = crossings.crossing_scene(np.random.default_rng(0), len(textures), "red", "disc", "up and left")
    assert scene.caption == "a red disc moves up and left"
    first, last = world.render(scene, np.array([0.0, 1.0]), textures).astype(float)
    ys, xs = [], []
    for frame in (first, last):
        y, x = np.nonzero((frame[..., 0] > 170) & (frame[..., 1] < 90))
        ys.append(y.mean())
        xs.append(x.mean())
    assert ys[1] < ys[0] - 8
    assert xs[1] < xs[0] - 8


def test_what_is_given_keeps_the_named_frames_and_hides_the_others(
    encoders: train_transformer.Encoders, textures: list[np.ndarray]
) -> None:
    scene = crossings.crossing_scene(np.random.default_rng(1), len(textures), "blue", "star", "right")
    signal = to_signal(world.render(scene, np.linspace(0, 1, 5), textures))
    given, latents = encoders.given(signal, "both"), encoders.latents(signal)
    assert given[0, :, 0, 0].tolist() == [encoders.scaling_factor, 0, 0, 0, encoders.scaling_factor]
    assert torch.allclose(given[1:, [0, -1]], latents[:, [0, -1]], atol=1e-5)
    assert torch.equal(given[1:, 1], given[1:, 3])
    assert not encoders.given(signal, "nothing").any()


def test_the_linear_codec_survives_its_transplant(textures: list[np.ndarray]) -> None:
    data = frames_for_fit(textures, 8, 1)
    codec = fit_linear(train_codec3d.HalfCodec, data, 20, 1)
    vae = layout_easyanimate.build_vae(1)
    train_codec3d.transplant(codec, vae, data)
    with torch.no_grad():
        wanted = codec.decode(codec.encode(data))
        latents = vae.encode(data.transpose(0, 1)[None]).latent_dist.mode()
        got = vae.decode(latents).sample[0].transpose(0, 1)
    assert float((got - wanted).std() / wanted.std()) < 0.1


def _first_losses(encoders: train_transformer.Encoders, textures: list[np.ndarray]) -> list[float]:
    """Two steps of the transformer's recipe."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    transformer = layout_easyanimate.build_transformer(5)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(BASE / "scheduler")
    optimizer = torch.optim.Adam(transformer.parameters(), lr=1e-3)
    generator, rng = torch.Generator().manual_seed(5), np.random.default_rng(5)
    pool = [train_transformer.draw_clip(index, textures, encoders, 5) for index in (0, 3)]
    losses = []
    for _ in range(2):
        batch = train_transformer.cut_batch(pool, 2, rng, whole=False)
        loss = train_transformer.flow_loss(transformer, scheduler, batch, encoders.text(""), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_first_steps_of_the_recipe_are_deterministic(
    encoders: train_transformer.Encoders, textures: list[np.ndarray]
) -> None:
    assert _first_losses(encoders, textures) == _first_losses(encoders, textures)


@pytest.mark.nightly
def test_the_colour_that_a_held_out_caption_names_is_the_one_rendered(tmp_path: Path) -> None:
    import evaluate_captions

    evaluate_captions.main(BASE, captions=16, steps=8, sheet=None, out=tmp_path / "rates.json")
    said = json.loads((tmp_path / "rates.json").read_text())
    assert said["true clips"]["colour"][0] > 0.9
    assert said["rendered"]["colour"][1] > 1 / len(evaluate_captions.CHROMATIC)  # the interval's lower end


def test_measured_colours_and_directions_are_those_of_a_drawn_clip(textures: list[np.ndarray]) -> None:
    import evaluate_captions

    scene = crossings.crossing_scene(np.random.default_rng(2), len(textures), "green", "square", "down and right")
    clip = world.render(scene, np.linspace(0, 1, 9), textures)
    assert evaluate_captions.seen(clip) == ("green", "down and right")
    assert evaluate_captions.seen(np.full_like(clip, 90)) == (None, None)
    assert evaluate_captions.seen(clip[::-1]) == ("green", "up and left")
