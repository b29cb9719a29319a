"""`framelora interpolate` and its function."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_training import adapter_section, section
from typer.testing import CliRunner

from framelora.adapters.folder import adapter_files
from framelora.adapters.lora import adapter_tensors, add_lora, config_dict
from framelora.cli import app
from framelora.commands.interpolate import fit_image, interpolate, place_track
from framelora.console import UserError
from framelora.families.framer import loss
from framelora.families.framer.loss import load_denoiser
from framelora.families.framer.networks.controlnet import new_controlnet
from framelora.families.framer.networks.unet import DEFAULT_LORA_TARGETS
from framelora.families.framer.pipeline import FramerPipeline, interpolate_tracks
from framelora.files import replace_folder
from framelora.params import load_params
from framelora.training.networks import build_networks, export, trained_parameters
from framelora.training.outs import adapter_folder

START, END = (REPOSITORY / f"data/demo/pairs/bunny_stretches_{half}.png" for half in ("start", "end"))
FAST = {"frames": 3, "steps": 1, "size": "32x24"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def run(*arguments: object) -> tuple[int, str, str]:
    fast = ["--frames", "3", "--steps", "1", "--size", "32x24"]
    result = CliRunner().invoke(app, ["interpolate", *map(str, arguments), *fast])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with an effect, of alpha twice the rank."""
    folder = tmp_path_factory.mktemp("adapter")
    params = load_params(REPOSITORY / "params.yaml").adapter.model_copy(update={"rank": 2, "alpha": 4.0})
    model = add_lora(load_denoiser(REPOSITORY / "bases/tiny-framer", torch.float32), params, DEFAULT_LORA_TARGETS, 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    for name, data in adapter_files(adapter_tensors(model), config_dict(model), {}).items():
        (folder / name).write_bytes(data)
    return folder


class TestOutput:
    def test_mp4(self, tmp_path: Path) -> None:
        path = tmp_path / "out.mp4"
        code, out, err = run(START, END, "-o", path, "--fps", 5)
        assert (code, err) == (0, "")
        assert f"wrote {path}: 3 frames, 32x24" in out
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.frames, stream.width, stream.height) == (5, 3, 32, 24)

    @pytest.mark.parametrize("name", ["out.gif", "out.webp"])
    def test_animations(self, tmp_path: Path, name: str) -> None:
        assert run(START, END, "-o", tmp_path / name, "--fps", 5)[0] == 0
        with Image.open(tmp_path / name) as image:
            assert (image.n_frames, image.size) == (3, (32, 24))  # type: ignore[attr-defined]
            image.load()
            assert image.info["duration"] == 200

    def test_a_folder_of_pngs_holds_the_very_frames_of_the_function(self, tmp_path: Path) -> None:
        folder = tmp_path / "frames"
        assert run(START, END, "-o", folder, "--seed", 3, "--scheduler", "dpm++")[0] == 0
        frames = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
        expected = interpolate(START, END, seed=3, scheduler="dpm++", **FAST)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.stack(frames), expected)
        code, _, err = run(START, END, "-o", folder)
        assert code == 1
        assert err.startswith("error: ") and "empty folder" in err


def by_hand(base: Path, unet: Any = None, points: Any = None, **options: Any) -> Any:
    """A clip of the pipeline itself, at the shipped parameters, 32x24."""
    params = load_params(REPOSITORY / "params.yaml").framer
    pipeline = FramerPipeline(base, controlnet=points is not None)
    pipeline.unet = pipeline.unet if unet is None else unet
    images = [fit_image(Image.open(path).convert("RGB"), (32, 24)) for path in (START, END)]
    shown = {} if points is None else {"point_tracks": interpolate_tracks(points, 3)}
    return pipeline(
        *images,
        width=32,
        height=24,
        num_frames=3,
        min_guidance_scale=params.render.min_guidance_scale,
        max_guidance_scale=params.render.max_guidance_scale,
        middle_max_guidance=params.render.middle_max_guidance,
        fps=params.conditioning.fps,
        motion_bucket_id=params.conditioning.motion_bucket_id,
        noise_aug_strength=params.conditioning.noise_aug_strength,
        heatmap_side=params.objective.heatmap_side,
        decode_chunk_size=params.render.decode_chunk_frames,
        **shown,
        **options,
    )


def frames_of(folder: Path, *options: object) -> Any:
    """What the command line renders with options, as an array."""
    fixed = [START, END, "-o", folder, "--frames", 3, "--size", "32x24"]
    result = CliRunner().invoke(app, ["interpolate", *map(str, [*fixed, *options])])
    assert result.exit_code == 0, result.stderr
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


class TestOptions:
    def test_seed_steps_and_scheduler_are_those_of_the_sampler(self, tmp_path: Path) -> None:
        base = REPOSITORY / "bases/tiny-framer"
        chosen: dict[str, Any] = {"steps": 3, "scheduler": "lcm", "seed": 4}
        clips = {}
        for name, value in ({"": 0} | {"steps": 2, "scheduler": "dpm++", "seed": 5}).items():
            used = chosen | ({name: value} if name else {})
            expected = by_hand(
                base,
                num_inference_steps=used["steps"],
                scheduler=used["scheduler"],
                generator=torch.Generator().manual_seed(used["seed"]),
            )
            clips[name] = interpolate(START, END, frames=3, size="32x24", **used)
            assert abs(clips[name].astype(int) - expected).max() <= 1
            given = [word for key, text in used.items() for word in (f"--{key}", text)]
            np.testing.assert_array_equal(frames_of(tmp_path / f"of{name}", *given), clips[name])
        for name in ("steps", "scheduler", "seed"):
            assert abs(clips[name].astype(int) - clips[""]).mean() > 0.3, name

    def test_the_strength_and_the_steps_of_the_tracks(self, base: Path, tmp_path: Path) -> None:
        track, settings = "30,20 60,40", {"base": base, "frames": 3, "steps": 2, "size": "32x24"}
        points = [place_track([(30.0, 20.0), (60.0, 40.0)], Image.open(START).size, (32, 24))]
        plain = interpolate(START, END, **settings)  # type: ignore[arg-type]
        clips = {}
        for scale in (0.0, 0.5, 1.0):
            expected = by_hand(
                base,
                points=points,
                num_inference_steps=2,
                controlnet_cond_scale=scale,
                generator=torch.Generator().manual_seed(0),
            )
            options = ["--base", base, "--steps", 2, "--track", track, "--control-scale", scale]
            clips[scale] = frames_of(tmp_path / f"scale{scale:.0%}", *options)
            assert abs(clips[scale].astype(int) - expected).max() <= 1
        assert abs(clips[0.0].astype(int) - plain).max() <= 1
        assert abs(clips[0.5].astype(int) - clips[1.0]).mean() > 0.1
        late = interpolate(START, END, tracks=[track], control_range=(0.5, 1.0), **settings)  # type: ignore[arg-type]
        assert abs(late.astype(int) - clips[1.0]).mean() > 0.1


class TestAdapter:
    def test_a_weight_multiplies_alpha_over_rank(self, adapter: Path, tmp_path: Path) -> None:
        """W + weight * 4 / 2 * B A, written into the base; the guide's code had the weight in place of 4 / 2."""
        unet = load_denoiser(REPOSITORY / "bases/tiny-framer", torch.float32)
        tensors = load_file(adapter / "adapter_model.safetensors")
        layers = dict(unet.named_modules())
        with torch.no_grad():
            for name, down in tensors.items():
                if ".lora_A." in name:
                    layer: Any = layers[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
                    layer.weight += 0.7 * 4 / 2 * tensors[name.replace("lora_A", "lora_B")] @ down
        expected = by_hand(
            REPOSITORY / "bases/tiny-framer",
            unet.eval(),
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
        ).astype(int)
        got = frames_of(tmp_path / "got", "--adapter", adapter, "--weight", 0.7, "--steps", 1)
        twice = interpolate(START, END, adapter=adapter, weight=0.35, **FAST)  # type: ignore[arg-type]
        assert abs(got - expected).max() <= 1
        assert abs(twice - expected).mean() > 0.1

    @pytest.mark.parametrize("merge", [False, True])
    def test_merge_leaves_no_adapter_beside_the_weights(
        self, merge: bool, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[FramerPipeline] = []

        class Watched(FramerPipeline):
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                made.append(self)
                return super().__call__(*args, **kwargs)

        monkeypatch.setattr("framelora.families.framer.pipeline.Pipeline", Watched)
        frames_of(tmp_path / "out", "--adapter", adapter, "--steps", 1, *(["--merge"] if merge else []))
        assert any(isinstance(module, LoraLayer) for module in made[0].unet.modules()) == (not merge)

    def test_weight_multiplies_and_zero_is_the_base(self, adapter: Path) -> None:
        clips = {
            weight: interpolate(START, END, adapter=adapter, weight=weight, **FAST).astype(int)  # type: ignore[arg-type]
            for weight in (0.0, 0.5, 1.0)
        }
        base = interpolate(START, END, **FAST).astype(int)  # type: ignore[arg-type]
        assert abs(clips[0.0] - base).max() <= 1
        assert abs(clips[1.0] - base).mean() > abs(clips[0.5] - base).mean() > 0.1

    def test_merged_it_gives_the_same_picture(self, adapter: Path) -> None:
        live, merged = (
            interpolate(START, END, adapter=adapter, weight=0.7, merge=merge, **FAST).astype(int)  # type: ignore[arg-type]
            for merge in (False, True)
        )
        assert abs(live - merged).max() <= 2

    def test_a_folder_with_unet_lora_in_it_is_an_adapter(self, adapter: Path, tmp_path: Path) -> None:
        (tmp_path / "unet_lora").symlink_to(adapter)
        direct, nested = (
            interpolate(START, END, adapter=folder, **FAST)  # type: ignore[arg-type]
            for folder in (adapter, tmp_path)
        )
        np.testing.assert_array_equal(direct, nested)

    def test_a_dora_is_not_rounded_away(self, adapter: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_denoiser(REPOSITORY / "bases/tiny-framer", torch.float32).state_dict()
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name in [name for name in tensors if ".lora_B." in name]:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            tensors[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = weights[f"{layer}.weight"].norm(dim=1)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_dora": True}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert run(START, END, "-o", tmp_path / "out.mp4", "--adapter", tmp_path)[0] == 0
        code, _, err = run(START, END, "-o", tmp_path / "wrong.mp4", "--adapter", tmp_path, "--dtype", "bfloat16")
        assert (code, err.count("\n")) == (1, 1), err
        assert "is a DoRA adapter, which is written into the weights in fp32: --dtype would round it away" in err

    def test_one_for_another_model_is_refused(self, adapter: Path, tmp_path: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        other = {name.replace("down_blocks.0", "down_blocks.7"): tensor for name, tensor in tensors.items()}
        save_file(other, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        code, _, err = run(START, END, "-o", tmp_path / "out.mp4", "--adapter", tmp_path)
        assert code == 1
        assert err.count("\n") == 1 and "another model" in err and "down_blocks.7" in err


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder with a ControlNet of its own, whose residuals are not zero."""
    folder = tmp_path_factory.mktemp("steered")
    network = new_controlnet(load_denoiser(REPOSITORY / "bases/tiny-framer", torch.float32), 4, seed=0)
    for layer in [*network.controlnet_down_blocks, network.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(layer.weight, std=0.05)
    network.save_pretrained(folder / "controlnet")
    return folder


@pytest.fixture(scope="module")
def base(steered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a ControlNet."""
    folder = tmp_path_factory.mktemp("base")
    for part in [*(REPOSITORY / "bases/tiny-framer").iterdir(), steered / "controlnet"]:
        (folder / part.name).symlink_to(part)
    return folder


@pytest.fixture(scope="module")
def plain(base: Path) -> list[Any]:
    """The base's clips, without and with a track."""
    settings: dict[str, Any] = FAST | {"base": base}
    return [interpolate(START, END, **settings, tracks=tracks) for tracks in ([], ["30,20 60,40"])]


def train_out(base: Path, folder: Path, unet: str, controlnet: str) -> Any:
    """models/adapter/ as training writes it, of networks that were moved; gives the networks too."""
    networks = build_networks(
        loss, base, adapter_section(target_modules=None), section(unet=unet, controlnet=controlnet), None
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trained_parameters(networks).values():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    replace_folder(folder, adapter_folder(export(networks, {})))
    return networks.eval()


class TestWhatTrainingWrites:
    FORMS = (("full", "none"), ("full", "full"), ("lora", "full"), ("lora", "lora"), ("none", "full"), ("none", "lora"))

    @pytest.mark.parametrize(("unet", "controlnet"), FORMS)
    def test_each_form_renders_as_the_networks_that_were_trained(
        self, unet: str, controlnet: str, base: Path, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        networks = train_out(base, tmp_path / "adapter", unet, controlnet)
        settings: dict[str, Any] = FAST | {"base": base}
        used: list[Any] = [{}, {"tracks": ["30,20 60,40"]}]
        clips = [interpolate(START, END, adapter=tmp_path / "adapter", **settings, **given) for given in used]

        def put_trained(pipeline: Any, *_: object) -> None:
            pipeline.unet = networks["unet"]
            if "controlnet" in networks and pipeline.controlnet is not None:
                pipeline.controlnet = networks["controlnet"]

        monkeypatch.setattr("framelora.commands.interpolate.put_on", put_trained)
        expected = [interpolate(START, END, adapter=tmp_path, **settings, **given) for given in used]
        for clip, trained, without, steering in zip(clips, expected, plain, (False, True), strict=True):
            assert abs(clip.astype(int) - trained).max() <= 1
            moved = unet != "none" or steering
            assert (abs(clip.astype(int) - without).mean() > 0.3) == moved

    def test_weights_in_full_of_another_model_or_damaged_are_refused(self, base: Path, tmp_path: Path) -> None:
        train_out(base, tmp_path / "adapter", "full", "none")
        path = tmp_path / "adapter/unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        save_file({name: tensor for name, tensor in tensors.items() if name != "mask_token"}, path)
        arguments = (START, END, "-o", tmp_path / "out.mp4", "--adapter", tmp_path / "adapter")
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1) and "another model" in err and "mask_token" in err
        path.write_bytes(path.read_bytes()[:-1])
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1) and "is damaged" in err
        path.unlink()
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1) and "is damaged" in err

    def test_a_damaged_controlnet_is_refused(self, base: Path, tmp_path: Path) -> None:
        train_out(base, tmp_path / "adapter", "none", "full")
        path = tmp_path / "adapter/controlnet/diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        code, _, err = run(
            START, END, "-o", tmp_path / "o.mp4", "--adapter", tmp_path / "adapter", "--track", "1,1 2,2"
        )
        assert (code, err.count("\n")) == (1, 1) and "adapter/controlnet can't be read" in err


class TestTracks:
    def test_they_steer_a_clip(self, steered: Path, tmp_path: Path) -> None:
        track = ["--track", "30,20 60,40 70,40", "--track", "10,10"]
        assert run(START, END, "-o", tmp_path / "a", "--adapter", steered, *track)[0] == 0
        assert run(START, END, "-o", tmp_path / "b", "--adapter", steered)[0] == 0
        first, second = (np.asarray(Image.open(tmp_path / name / "0001.png")).astype(int) for name in "ab")
        assert abs(first - second).mean() > 0.1

    def test_without_controlnet_they_are_refused(self, tmp_path: Path) -> None:
        code, _, err = run(START, END, "-o", tmp_path / "out.mp4", "--track", "1,1 2,2")
        assert code == 1
        assert "bases/tiny-framer has no controlnet/" in err

    @pytest.mark.parametrize("track", ["", "10", "10;20", "10,20,30", "a,b", "1,2 x", "9999,1"])
    def test_a_bad_one_is_named(self, tmp_path: Path, track: str) -> None:
        code, _, err = run(START, END, "-o", tmp_path / "out.mp4", "--track", track)
        assert code == 1
        assert err.startswith("error: --track") and err.count("\n") == 1

    def test_points_follow_the_scaling_and_the_crop(self) -> None:
        """A 200x100 image covers 50x50 at half its size, and loses 25 pixels on the left."""
        assert place_track([(100.0, 50.0), (60.0, 10.0)], (200, 100), (50, 50)) == [(25.0, 25.0), (5.0, 5.0)]


class TestMistakes:
    def test_each_is_one_line_that_says_what_and_where(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"no image")
        (tmp_path / "text.txt").write_text("no image")
        Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
        out = tmp_path / "out.mp4"
        cases = {
            "missing.png does not exist": (tmp_path / "missing.png", END, "-o", out),
            "broken.png is not a .png image": (tmp_path / "broken.png", END, "-o", out),
            "text.txt is no image by its name": (tmp_path / "text.txt", END, "-o", out),
            "differ in size": (START, tmp_path / "square.png", "-o", out),
            ".avi is unknown": (START, END, "-o", tmp_path / "out.avi"),
            "holds no adapter_config.json": (START, END, "-o", out, "--adapter", tmp_path),
            "holds no unet/config.json": (START, END, "-o", out, "--base", tmp_path),
            "there is no dtype int8": (START, END, "-o", out, "--dtype", "int8"),
        }
        for message, arguments in cases.items():
            code, _, err = run(*arguments)
            assert (code, err.count("\n")) == (1, 1), err
            assert err.startswith("error: ") and message in err, err
        assert not out.exists()

    @pytest.mark.parametrize(
        "name", ["vae/config.json", "feature_extractor/preprocessor_config.json", "image_encoder/config.json",
                 "scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"],
    )  # fmt: skip
    def test_a_base_that_lacks_a_part_is_told_by_its_file(self, name: str, tmp_path: Path) -> None:
        shutil.copytree(REPOSITORY / "bases/tiny-framer", tmp_path / "base")
        (tmp_path / "base" / name).unlink()
        code, _, err = run(START, END, "-o", tmp_path / "out.mp4", "--base", tmp_path / "base")
        assert (code, err.count("\n")) == (1, 1)
        expected = f"base holds no {name}" if name.endswith(".json") else "base can't be read: .*/vae"
        assert re.match(rf"error: .*{expected}", err) and "controlnet" not in err, err

    @pytest.mark.parametrize(
        ("text", "match"), [("{broken", "not valid JSON"), ("[]", "not a mapping"), ("{}", "lora_alpha = None")]
    )
    def test_a_damaged_configuration_of_an_adapter_is_named(
        self, text: str, match: str, adapter: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(adapter, tmp_path / "adapter")
        (tmp_path / "adapter/adapter_config.json").write_text(text)
        code, _, err = run(START, END, "-o", tmp_path / "out.mp4", "--adapter", tmp_path / "adapter")
        assert (code, err.count("\n")) == (1, 1)
        assert "adapter is damaged" in err and match in err, err

    def test_a_size_the_vae_cannot_take(self) -> None:
        with pytest.raises(UserError, match="multiple of 4"):
            interpolate(START, END, frames=3, steps=1, size="33x24")

    def test_two_frames_have_no_middle(self) -> None:
        with pytest.raises(UserError, match="at least 3"):
            interpolate(START, END, frames=2, steps=1, size="32x24")

    def test_parameters_are_checked_first(self, tmp_path: Path) -> None:
        text = (REPOSITORY / "params.yaml").read_text().replace("scheduler: euler", "scheduler: heun")
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(UserError, match="scheduler"):
            interpolate(START, END, params=tmp_path / "params.yaml")


def test_the_function_does_without_the_command_line() -> None:
    code = "import json, sys, framelora.commands.interpolate; print(json.dumps('typer' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) is False
