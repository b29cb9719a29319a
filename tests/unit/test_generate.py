"""`framelora generate` on a small base: what it renders, and what it says of wrong input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from diffusers import EasyAnimateTransformer3DModel
from easyanimate_base import make_base, make_transformer
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from test_adapters import make_state, run, write

from framelora.adapters.state import LoraLayer, LoraState
from framelora.base_model import write_lock

SMALL = ("--prompt", "a bird sits", "--size", "48x32", "--frames", "9", "--steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video base, an inpaint base, two adapters and two pictures."""
    folder = tmp_path_factory.mktemp("generate")
    text = (REPOSITORY / "params.yaml").read_text()
    text = text.replace("family: framer", "family: easyanimate").replace("bases/tiny-framer", "t2v")
    (folder / "params.yaml").write_text(text)
    make_base(folder / "t2v")
    make_base(folder / "inp", in_channels=9)
    for seed, name in enumerate("ab"):
        write(folder / name, make_state(seed, strength=0.5), "peft")
    write(folder / "a.safetensors", make_state(0, strength=0.5), "kohya")
    for name, colour in (("red", (200, 30, 30)), ("blue", (20, 30, 220))):
        Image.new("RGB", (60, 60), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def frames_of(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def dora_state() -> LoraState:
    """A random DoRA adapter on every layer of the small transformer, magnitudes a little off those of its weights."""
    weights = make_transformer().state_dict()
    generator = torch.Generator().manual_seed(5)
    layers = {}
    for name, layer in make_state(1, strength=0.3).layers.items():
        norms = weights[f"{name}.weight"].norm(dim=1)
        magnitude = norms * (1 + 0.3 * torch.rand(norms.shape, generator=generator))
        layers[name] = LoraLayer(layer.down, layer.up, layer.alpha, magnitude)
    return LoraState(layers)


def generate(name: str, *arguments: str) -> np.ndarray:
    code, text = run("generate", *SMALL, *arguments, "-o", name)
    assert code == 0, text
    return frames_of(name)


def test_text_to_video_is_a_function_of_prompt_and_seed() -> None:
    one = generate("one.mp4")
    assert one.shape == (9, 32, 48, 3)
    assert np.array_equal(one, generate("again.mp4"))
    assert not np.array_equal(one, generate("other.mp4", "--seed", "44"))
    assert not np.array_equal(one, generate("cloud.mp4", "--prompt", "cloud"))


def test_adapters_act_at_their_weights_whatever_form_they_have() -> None:
    base, off = generate("base.mp4"), generate("off.mp4", "--adapter", "a@0")
    assert np.array_equal(base, off)
    weak, strong = (generate(f"{weight}.mp4", "--adapter", f"a@{weight}") for weight in (0.05, 1.0))
    assert np.abs(strong - base).mean() > np.abs(weak - base).mean() > 0
    both = generate("both.mp4", "--adapter", "a@1.0", "--adapter", "b@0.5")
    assert not np.array_equal(both, strong)
    assert np.array_equal(strong, generate("kohya.mp4", "--adapter", "a.safetensors@1.0"))


def test_a_dora_adapter_acts_live_by_the_part_of_the_way_that_its_weight_is(folder: Path) -> None:
    """Against bases whose weights are W + w (W' - W), W' = m (W + B A) / |W + B A| by rows."""
    state = dora_state()
    write(Path("dora"), state, "peft")
    write(Path("dora.safetensors"), state, "diffusers")
    base = generate("base.mp4")
    assert np.array_equal(base, generate("off.mp4", "--adapter", "dora@0"))
    for weight in (0.5, 1.0):
        shutil.rmtree("blended", ignore_errors=True)
        shutil.copytree("t2v", "blended")
        path = Path("blended/transformer/diffusion_pytorch_model.safetensors")
        tensors = load_file(path)
        for name, layer in state.layers.items():
            before = tensors[f"{name}.weight"]
            moved = before + layer.alpha / layer.rank * layer.up @ layer.down
            assert layer.magnitude is not None
            after = layer.magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
            tensors[f"{name}.weight"] = before + weight * (after - before)
        save_file(tensors, path, metadata={"format": "pt"})
        write_lock(Path("blended"))
        expected = generate("blended.mp4", "--base", "blended")
        assert np.abs(expected - base).mean() > 2
        for adapter in ("dora", "dora.safetensors"):
            assert np.abs(generate("live.mp4", "--adapter", f"{adapter}@{weight}") - expected).mean() < 0.2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--memory-mode", "sequential_cpu_offload"], "easyanimate.render.memory_mode: sequential_cpu_offload would l"),
        (["--memory-mode", "model_cpu_offload_and_qfloat8"], "memory_mode: model_cpu_offload_and_qfloat8 would lose"),
        (["--adapter", "a@0.1"], "--adapter dora is a DoRA adapter, whose change is no low-rank sum: give it alone"),
    ],
)
def test_a_dora_adapter_is_refused_where_it_would_be_lost(arguments: list[str], part: str) -> None:
    write(Path("dora"), dora_state(), "peft")
    code, text = run("generate", *SMALL, "--adapter", "dora@1", *arguments, "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert part in text


def test_a_dora_adapter_is_refused_on_bf16_weights(changed: Callable[[str, object], None], folder: Path) -> None:
    write(Path("dora"), dora_state(), "peft")
    changed("dtype", "bfloat16")
    code, text = run("generate", *SMALL, "--adapter", f"{folder / 'dora'}@1", "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert "easyanimate.render.dtype: bfloat16 would lose it" in text


def test_frames_are_rounded_to_4n_plus_1_with_a_line() -> None:
    code, text = run("generate", *SMALL, "--frames", "7", "-o", "rounded.mp4")
    assert code == 0
    assert "--frames 7 is rounded to 9: the base takes multiples of 4, plus 1" in text
    assert len(frames_of("rounded.mp4")) == 9


def test_pictures_at_the_ends_steer_an_inpaint_base() -> None:
    plain = generate("plain.mp4", "--base", "inp")
    start = generate("start.mp4", "--base", "inp", "--image-start", "red.png")
    both = generate("ends.mp4", "--base", "inp", "--image-start", "red.png", "--image-end", "blue.png")
    assert not np.array_equal(plain, start)
    assert not np.array_equal(start, both)
    red = generate("red.mp4", "--base", "inp", "--image-start", "red.png", "--image-end", "red.png")
    assert not np.array_equal(both, red)  # what the second picture shows counts


@pytest.fixture
def changed(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, object], None]:
    """A function that goes to a folder whose params.yaml has another value of a key of easyanimate.render."""

    def change(key: str, value: object) -> None:
        yaml = YAML()
        document = yaml.load(folder / "params.yaml")
        document["easyanimate"]["render"][key] = value
        document["model"]["base"] = str(folder / "t2v")
        yaml.dump(document, tmp_path / "params.yaml")
        monkeypatch.chdir(tmp_path)

    return change


def test_guidance_is_what_params_say_unless_it_is_given(changed: Callable[[str, object], None]) -> None:
    default, given = generate("six.mp4"), generate("three.mp4", "--guidance", "3")
    assert np.array_equal(default, generate("same.mp4", "--guidance", "6"))
    assert not np.array_equal(default, given)
    changed("guidance_scale", 3.0)
    assert np.array_equal(generate("params.mp4"), given)


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    clips = [generate(f"not_{word}.mp4", "--negative-prompt", word) for word in ("", "cloud", "tree")]
    assert not any(np.array_equal(clips[one], clips[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    clips = [generate(f"{word}.mp4", "--negative-prompt", word, "--guidance", "1") for word in ("cloud", "tree")]
    assert np.array_equal(*clips)


def test_steps_and_the_frame_rate_are_those_asked_for() -> None:
    two, three = generate("two.mp4"), generate("three.mp4", "--steps", "3")
    assert not np.array_equal(two, three)
    generate("fps.mp4", "--fps", "5")
    with av.open("fps.mp4") as asked, av.open("two.mp4") as default:
        assert (asked.streams.video[0].average_rate, default.streams.video[0].average_rate) == (5, 8)


def test_the_memory_mode_is_what_params_say_unless_it_is_given(changed: Callable[[str, object], None]) -> None:
    mode = "model_cpu_offload_and_qfloat8"
    line = f"easyanimate.render.memory_mode: {mode}: there is no GPU: float8 weights are used, but nothing is offloaded"
    plain = generate("plain.mp4")
    code, text = run("generate", *SMALL, "--memory-mode", mode, "-o", "float8.mp4")
    assert code == 0 and line in text
    assert not np.array_equal(plain, frames_of("float8.mp4"))
    given = frames_of("float8.mp4")
    changed("memory_mode", mode)
    assert np.array_equal(generate("params.mp4"), given)
    code, text = run("generate", *SMALL, "--memory-mode", "none", "-o", "none.mp4")
    assert code == 0 and line not in text
    assert np.array_equal(frames_of("none.mp4"), plain)


def test_a_negative_weight_acts_and_is_warned_of() -> None:
    line = "warning: a@-0.5: a negative weight takes away what the adapter learned"
    clips = {}
    for weight in (-0.5, 0.0, 0.5):
        code, text = run("generate", *SMALL, "--adapter", f"a@{weight}", "-o", "weight.mp4")
        assert code == 0
        assert (line in text) == (weight < 0)
        clips[weight] = frames_of("weight.mp4")
    assert not np.array_equal(clips[-0.5], clips[0.0]) and not np.array_equal(clips[-0.5], clips[0.5])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--size", "50x32"], "both sides must be multiples of 16: 48x32 is near"),
        (["--size", "wide"], "--size wide: write WIDTHxHEIGHT"),
        (["--adapter", "a@strong"], "'strong' is not a number"),
        (["--adapter", "a@nan"], "the weight must be finite"),
        (["--adapter", "nowhere@1"], "nowhere does not exist"),
        (["--base", "nowhere"], "nowhere does not exist"),
        (["--prompt", "bird " * 90], "the text has 92 tokens, and the encoder takes 64"),
        (["--image-start", "red.png"], "t2v renders from text only: use an inpaint base"),
        (["--base", "inp", "--image-end", "red.png"], "--image-end needs --image-start"),
        (["--base", "inp", "--image-start", "gone.png"], "gone.png does not exist"),
        (["--memory-mode", "small"], "--memory-mode small: choose one of none, model_cpu_offload, "),
        (["--guidance", "nan"], "--guidance nan: it must be a finite number"),
        (["--guidance", "inf"], "--guidance inf: it must be a finite number"),
        (["--guidance", "-1"], "--guidance -1: it must be a finite number"),
        (["-o", "clip.avi"], "call it something.mp4"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], part: str) -> None:
    code, text = run("generate", *SMALL, "-o", "wrong.mp4", *arguments)
    assert code == 1
    assert part in text
    assert "Traceback" not in text
    assert not Path("wrong.mp4").exists()


@pytest.mark.parametrize(("option", "called"), [("--prompt", "prompt"), ("--negative-prompt", "negative prompt")])
def test_a_text_is_never_cut_whatever_is_done_with_captions(
    option: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path("params.yaml").read_text()
    assert "long_captions: stop" in text
    (tmp_path / "params.yaml").write_text(text.replace("long_captions: stop", "long_captions: truncate"))
    base = str(Path("t2v").absolute())
    monkeypatch.chdir(tmp_path)
    code, text = run("generate", *SMALL, option, "bird " * 90, "--base", base, "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert f"error: the {called}: the text has 92 tokens, and the encoder takes 64" in text


@pytest.mark.parametrize(
    ("removed", "part"),
    [
        ("text_encoder/config.json", "text_encoder/config.json is missing: it holds transformer/, vae/, text_encoder/"),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors is missing"),
        ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer_config.json is missing"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json is missing"),
        ("vae/config.json", "vae/config.json is missing"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors is missing"),
        ("transformer/config.json", "transformer/config.json is missing: name another folder"),
        (
            "transformer/diffusion_pytorch_model.safetensors",
            "transformer/diffusion_pytorch_model.safetensors is missing",
        ),
    ],
)
def test_a_base_that_is_not_whole_is_told_by_what_it_lacks(tmp_path: Path, removed: str, part: str) -> None:
    shutil.copytree("t2v", tmp_path / "base")
    (tmp_path / "base" / removed).unlink()
    write_lock(tmp_path / "base")
    code, text = run("generate", *SMALL, "--base", str(tmp_path / "base"), "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert text.startswith("error: ") and part in text


def test_a_piece_of_sharded_weights_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree("t2v", tmp_path / "base")
    transformer = EasyAnimateTransformer3DModel.from_pretrained("t2v/transformer")
    shutil.rmtree(tmp_path / "base/transformer")
    transformer.save_pretrained(tmp_path / "base/transformer", max_shard_size="100KB")
    write_lock(tmp_path / "base")
    arguments = [*SMALL, "--base", str(tmp_path / "base"), "-o"]
    assert run("generate", *arguments, "sharded.mp4")[0] == 0
    pieces = sorted((tmp_path / "base/transformer").glob("*.safetensors"))
    assert len(pieces) > 1
    pieces[1].unlink()
    write_lock(tmp_path / "base")
    code, text = run("generate", *arguments, "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert f"transformer/{pieces[1].name} is missing" in text


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    shutil.copytree("t2v", tmp_path / "base")
    (tmp_path / "base/vae/config.json").write_text(content)
    write_lock(tmp_path / "base")
    code, text = run("generate", *SMALL, "--base", str(tmp_path / "base"), "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert f"{tmp_path}/base/vae/config.json" in text


def test_a_base_of_another_family_is_named() -> None:
    foreign = str(REPOSITORY / "bases/tiny-framer")
    code, text = run("generate", *SMALL, "--base", foreign, "-o", "wrong.mp4")
    assert (code, text.count("\n")) == (1, 1), text
    assert f"{foreign} is no base of model.family easyanimate: transformer/config.json is missing" in text


def test_an_adapter_for_another_model_is_refused() -> None:
    write(Path("wide"), make_state(), "peft")
    tensors = load_file("wide/adapter_model.safetensors")
    name = "base_model.model.proj_out.lora_A.weight"
    save_file(tensors | {name: torch.zeros(3, 99)}, "wide/adapter_model.safetensors")
    code, text = run("generate", *SMALL, "--adapter", "wide@1", "-o", "wrong.mp4")
    assert code == 1
    assert "wide does not fit this base: proj_out is 16x99, the base's 16x32" in text


def test_a_family_without_prompts_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    code, text = run("generate", *SMALL, "--base", str(REPOSITORY / "bases/tiny-framer"), "-o", "wrong.mp4")
    assert code == 1
    assert "model.family framer takes no prompt" in text
