"""The training loop on a net of a few dozen parameters: resume after kills, length, best weights, optimizers, probe."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_training import adapter_section, run, section, tiny_items, tiny_loss, tiny_networks
from torch import Tensor

from framelora.console import UserError
from framelora.training.checkpoint import BEST, STATE, Checkpoint, Checkpoints, read_checkpoint, read_files
from framelora.training.items import run_length
from framelora.training.optimizer import Stepper, learning_rate_factor, learning_rates
from framelora.training.outs import pack_files
from framelora.training.probe import NoGradient, layers_without_gradient
from framelora.training.session import Session
from framelora.training.trackers import check_installed
from framelora.training.validation import Diverged

pytestmark = pytest.mark.xdist_group("training")

EVENTS = 64  # reads, flushes and renames of a whole tiny run


def final(state: Path) -> dict[str, bytes]:
    """Everything a run leaves, by path."""
    return read_files(state)


def history(state: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((state / "final" / STATE).read_bytes())["history"]
    return rows


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes that have imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    with pytest.MonkeyPatch.context() as patch:  # the server does not know pytest's path
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


def run_in_process(server: Any, state: Path, kill_at: int = -1, **values: Any) -> int:
    """Run in a process of its own; gives its exit code, -9 when it was killed."""
    process = server.Process(target=run, args=(str(state), kill_at), kwargs=values)
    process.start()
    process.join(120)
    code: int = process.exitcode
    return code


@pytest.fixture(scope="module")
def whole(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing stopped leaves."""
    state = tmp_path_factory.mktemp("whole") / "state"
    assert run_in_process(server, state, ema_decay=0.9) == 0
    return final(state)


class TestResume:
    @pytest.mark.parametrize("kills", [[3], [11], [16, 9], [17], [18], [23, 30], [29], [41]])
    def test_a_run_killed_at_any_event_ends_in_the_same_bytes(
        self, server: Any, whole: dict[str, bytes], tmp_path: Path, kills: list[int]
    ) -> None:
        state = tmp_path / "state"
        for event in kills:
            assert run_in_process(server, state, event, ema_decay=0.9) in (-9, 0)
        assert run_in_process(server, state, ema_decay=0.9) == 0
        assert final(state) == whole

    @pytest.mark.nightly
    def test_kills_at_every_event_and_twice_at_random_ones(
        self, server: Any, whole: dict[str, bytes], tmp_path: Path
    ) -> None:
        chooser = random.Random(1)
        plans = [[event] for event in range(EVENTS)]
        plans += [[chooser.randrange(EVENTS), chooser.randrange(EVENTS)] for _ in range(EVENTS)]
        for number, kills in enumerate(plans):
            state = tmp_path / f"{number}"
            codes = [run_in_process(server, state, event, ema_decay=0.9) for event in kills]
            assert codes[0] == -9 or number > 40, "a kill did not happen"
            assert run_in_process(server, state, ema_decay=0.9) == 0
            assert final(state) == whole, kills

    @pytest.mark.parametrize("values", [{"optimizer": "prodigy", "learning_rate": 1.0}, {"offload_optimizer": True}])
    def test_other_optimizers_resume_exactly(self, tmp_path: Path, values: dict[str, Any]) -> None:
        run(str(tmp_path / "whole"), **values)
        run(str(tmp_path / "part"), **values)
        for name in ("final", "checkpoint-00000004"):
            for path in sorted((tmp_path / "part" / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (tmp_path / "part" / name).rmdir()
        run(str(tmp_path / "part"), **values)
        assert final(tmp_path / "part") == final(tmp_path / "whole")

    def test_offloading_changes_no_byte_of_the_weights(self, tmp_path: Path) -> None:
        for name, offload in (("here", False), ("there", True)):
            run(str(tmp_path / name), offload_optimizer=offload)
        weights = [read_files(tmp_path / name / "final/unet_lora") for name in ("here", "there")]
        assert weights[0] == weights[1]

    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self, tmp_path: Path) -> None:
        run(str(tmp_path / "whole"))
        run(str(tmp_path / "part"))
        part = Checkpoints(tmp_path / "part")
        for name in ("final", "checkpoint-00000004"):
            weights = tmp_path / "part" / name / "state/parameters.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        start, problems = part.latest()
        assert start is not None and start.step == 2
        assert [problem.partition(":")[0] for problem in problems] == ["final", "checkpoint-00000004"]
        run(str(tmp_path / "part"))
        assert final(tmp_path / "part") == final(tmp_path / "whole")


def tiny_session(
    folder: Path, adapter: dict[str, Any] | None = None, targets: tuple[str, ...] = ("to_q", "to_v"), **values: Any
) -> Session:
    """The real session, on the tiny net."""

    def load_denoiser(base: Path, dtype: torch.dtype) -> tiny_training.Net:
        torch.manual_seed(0)
        return tiny_training.Net()

    def loss(unet: Any, batch: Any, seeds: Any, base: Path, params: Any, levels: Any) -> Tensor:
        return tiny_training.tiny_loss({"unet": unet}, batch, seeds, levels)  # type: ignore[arg-type]

    sections = {"adapter": adapter_section(**{"target_modules": None} | (adapter or {})), "train": section(**values)}
    params = tiny_training.SHIPPED.model_copy(update=sections)
    family = SimpleNamespace(load_denoiser=load_denoiser, loss=loss, lora_targets=lambda _: targets)
    return Session(params, family, folder, folder / "logs")


def all_items() -> dict[str, Any]:
    return {"train": tiny_items(7, "item"), "val": tiny_items(3, "val")}


def train_tiny(folder: Path, start: Checkpoint | None = None, **values: Any) -> Checkpoint:
    """A run of the real session; gives its last checkpoint."""
    own = copy.deepcopy(start)  # the optimizer steps on its tensors
    tiny_session(folder, **values).train(all_items(), Checkpoints(folder / "state"), own, tiny_training.LINEAGE)
    return read_checkpoint(folder / "state/final")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint at step 2."""
    return train_tiny(tmp_path_factory.mktemp("start"), max_train_steps=2)


class TestResumeFromAnotherRun:
    def test_it_goes_on_with_other_rates_and_more_steps(self, start: Checkpoint, tmp_path: Path) -> None:
        """AdamW takes weight decay off a value before its step: lr * decay of it, exactly."""
        values = {"max_train_steps": 3, "learning_rate": 0.01}
        decayed, kept = (
            train_tiny(tmp_path / f"{decay}", start, adam_weight_decay=decay, **values) for decay in (0.5, 0.0)
        )
        assert decayed.scalars["history"][:3] == start.scalars["history"]
        assert decayed.scalars["history"][3]["learning_rate"] == 0.01
        for name, before in start.tensors["parameters"].items():
            lost = kept.tensors["parameters"][name] - decayed.tensors["parameters"][name]
            torch.testing.assert_close(lost, 0.01 * 0.5 * before, rtol=1e-3, atol=1e-6)
            assert (kept.tensors["parameters"][name] - before).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ({"adapter": {"rank": 4}}, r"another rank.*\[2, 4\] there and \[4, 4\] here"),
            ({"adapter": {"rank": 1}}, r"another rank.*\[2, 4\] there and \[1, 4\] here"),
            ({"optimizer": "prodigy", "learning_rate": 1.0}, "optimizer there: adamw, here: prodigy"),
            ({"targets": ("to_q",)}, "other things were trained there .2 names differ"),
            ({"targets": ("to_q", "to_v", "idle")}, "other things were trained there .2 names differ"),
            ({"adapter": {"alpha": 3.0}}, "'lora_alpha': 2.0.* here: .*'lora_alpha': 3.0"),
            ({"unet": "full"}, "other things were trained there"),
        ],
    )
    def test_a_checkpoint_of_another_training_is_refused_in_one_line(
        self, start: Checkpoint, tmp_path: Path, values: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(UserError, match=f"^train.resume_from_checkpoint: .*{match}") as raised:
            train_tiny(tmp_path, start, max_train_steps=4, **values)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "state").exists()

    def test_a_mistake_inside_the_loop_is_not_taken_for_one_of_the_checkpoint(
        self, start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Tensor:
            raise KeyError("image_embeds")

        monkeypatch.setattr(tiny_training, "tiny_loss", broken)
        with pytest.raises(KeyError, match="image_embeds"):
            train_tiny(tmp_path, start, max_train_steps=4)


class TestLength:
    def test_the_last_partial_accumulation_is_a_step(self) -> None:
        length = run_length(
            [(1,)] * 7, section(max_train_steps=None, num_train_epochs=1, gradient_accumulation_steps=3)
        )
        assert (length.steps, length.batches) == (2, 4)  # 7 items in batches of 2
        assert [list(length.of_step(step)) for step in (1, 2)] == [[0, 1, 2], [3]]

    def test_fewer_batches_than_the_accumulation_still_take_a_step(self, tmp_path: Path) -> None:
        run(str(tmp_path / "state"), items=2, max_train_steps=None, num_train_epochs=1, gradient_accumulation_steps=8)
        rows = history(tmp_path / "state")
        assert [row["step"] for row in rows] == [0, 1]
        assert rows[1]["grad_norm"] > 0 and rows[1]["learning_rate"] == pytest.approx(0.05 / 2)  # warm-up of 2
        saved = load_file(tmp_path / "state/final/unet_lora/adapter_model.safetensors")
        trained = [value for name, value in saved.items() if ".lora_B." in name]
        assert len(trained) == 2 and all(value.abs().max() > 0.01 for value in trained)  # B begins at zero

    @pytest.mark.parametrize("values", [{"max_train_steps": None}, {"num_train_epochs": 1}, {"unet": "none"}])
    def test_contradictory_lengths_are_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            section(**values)

    def test_accumulated_batches_weigh_like_one_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four items as 2 x 2 and as 1 x 4: the same mean of gradients, by another order of additions."""

        def without_draws(networks: Any, batch: Any, seeds: Any, levels: Any) -> Tensor:
            value: Tensor = (networks["unet"](batch["x"]) - batch["x"]).square().mean(dim=1)
            return value

        monkeypatch.setattr(tiny_training, "tiny_loss", without_draws)
        for name, batch, parts in (("one", 4, 1), ("two", 2, 2)):
            run(
                str(tmp_path / name), items=4, adapter={"dropout": 0.0}, max_train_steps=3, lr_warmup_steps=0,
                train_batch_size=batch, gradient_accumulation_steps=parts, validation_levels=1, max_grad_norm=1e6,
            )  # fmt: skip
        one, two = (history(tmp_path / name) for name in ("one", "two"))
        assert len(one) == 4
        for name in ("loss", "grad_norm", "validation_loss"):
            rows = [[row[name] for row in rows if name in row] for rows in (one, two)]
            assert rows[0] == pytest.approx(rows[1], rel=1e-4)
        weights = [load_file(tmp_path / name / "final/state/parameters.safetensors") for name in ("one", "two")]
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


class TestSchedule:
    def test_warm_up_counts_optimizer_steps(self, tmp_path: Path) -> None:
        run(str(tmp_path / "state"), lr_warmup_steps=2, gradient_accumulation_steps=4)
        rates = [row["learning_rate"] for row in history(tmp_path / "state")[1:]]
        assert rates == pytest.approx([0.025, 0.05, 0.05, 0.05, 0.05])

    @pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
    def test_warm_up_rises_from_its_first_share_and_no_step_is_wasted(self, name: str) -> None:
        factor = learning_rate_factor(section(lr_scheduler=name, lr_warmup_steps=4), 10)
        factors = [factor(step) for step in range(10)]
        assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
        assert all(value > 0.01 for value in factors)
        long = learning_rate_factor(section(lr_scheduler=name, lr_warmup_steps=4), 2)
        assert [long(step) for step in range(2)] == pytest.approx([0.25, 0.5])

    def test_the_optimizer_steps_at_the_rate_of_the_schedule(self, tmp_path: Path) -> None:
        """AdamW's first step moves every value by its learning rate, whatever the gradient's size."""
        for name, warmup in (("slow", 4), ("fast", 0)):
            values = {"max_train_steps": 1, "lr_warmup_steps": warmup, "adam_weight_decay": 0.0}
            run(str(tmp_path / name), lr_scheduler="linear", **values)
        moved = {}
        for name in ("slow", "fast"):
            saved = load_file(tmp_path / name / "final/unet_lora/adapter_model.safetensors")
            moved[name] = saved["base_model.model.to_v.lora_B.weight"].abs()
        torch.testing.assert_close(moved["fast"], torch.full_like(moved["fast"], 0.05), rtol=1e-3, atol=0)
        torch.testing.assert_close(moved["slow"], moved["fast"] / 4, rtol=1e-3, atol=0)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("constant", lambda _: 1.0),
            ("linear", lambda step: (10 - step) / 8),
            ("cosine", lambda step: (1 + math.cos(math.pi * (step - 2) / 8)) / 2),
        ],
    )
    def test_schedules_fall_as_their_names_say(self, name: str, expected: Any) -> None:
        factor = learning_rate_factor(section(lr_scheduler=name, lr_warmup_steps=2), 10)
        assert [factor(step) for step in range(2, 10)] == pytest.approx([expected(step) for step in range(2, 10)])


class TestRefused:
    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ({"adam_beta1": 1.0}, "adam_beta1"),
            ({"adam_beta2": 1.0}, "adam_beta2"),
            (
                {"optimizer": "prodigy", "learning_rate": 1.0, "controlnet": "lora", "controlnet_learning_rate": 0.5},
                "set controlnet_learning_rate to null",
            ),
        ],
    )
    def test_what_no_optimizer_takes_is_refused_by_the_schema(self, values: dict[str, Any], match: str) -> None:
        with pytest.raises(ValidationError, match=match):
            section(**values)

    @pytest.mark.parametrize("rate", [None, 1.0, 0.0])
    def test_prodigy_takes_one_rate_and_groups_that_stand_still(self, rate: float | None) -> None:
        params = section(optimizer="prodigy", learning_rate=1.0, controlnet="lora", controlnet_learning_rate=rate)
        parameters = {name: torch.nn.Parameter(torch.ones(3)) for name in ("unet.w", "controlnet.w")}
        stepper = Stepper(parameters, learning_rates(["unet", "controlnet"], params), params)
        for parameter in parameters.values():
            parameter.grad = torch.ones(3)
        stepper.step(None)
        assert not torch.equal(parameters["unet.w"], torch.ones(3))


class TestPruning:
    @pytest.mark.parametrize(("limit", "kept"), [(0, [6, 7]), (4, [4, 5, 6, 7])])
    def test_old_checkpoints_and_bests_go(self, limit: int, kept: list[int], tmp_path: Path) -> None:
        """A run that goes on from the oldest checkpoint needs the best weights of that time, and no older ones."""
        state = tmp_path / "state"
        often = {"checkpointing_steps": 1, "validation_steps": 1}
        run(str(state), max_train_steps=8, checkpoints_total_limit=limit, learning_rate=0.002, **often)
        assert sorted(state.glob("checkpoint-*")) == [state / f"checkpoint-{step:08d}" for step in kept]
        losses = {row["step"]: row["validation_loss"] for row in history(state)[1:]}
        lowest = [step for step in losses if losses[step] == min(losses[n] for n in range(1, step + 1))]
        oldest = max(step for step in lowest if step <= kept[0])
        assert sorted(state.glob("best-*")) == [state / f"best-{step:08d}" for step in lowest if step >= oldest]
        assert lowest[0] < oldest, "nothing had to go"


class TestBest:
    def test_the_lowest_validation_loss_keeps_its_weights(self, tmp_path: Path) -> None:
        run(str(tmp_path / "state"), learning_rate=0.3, max_train_steps=6, checkpointing_steps=2)
        rows = [row for row in history(tmp_path / "state")[1:] if "validation_loss" in row]
        lowest = min(rows, key=lambda row: row["validation_loss"])
        best = tmp_path / "state" / f"best-{lowest['step']:08.0f}"
        assert json.loads((best / BEST).read_bytes()) == {name: lowest[name] for name in ("step", "validation_loss")}
        at = f"checkpoint-{lowest['step']:08.0f}"
        assert lowest["step"] < 6, "the last is the best"
        kept = {name: data for name, data in read_files(best).items() if name != BEST}
        assert kept == {n: d for n, d in read_files(tmp_path / "state" / at).items() if n.startswith("unet_lora/")}

    def test_validation_is_measured_in_equal_shares_of_the_noise_with_fixed_draws(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[tuple[int, ...], tuple[float, ...]]] = []

        def watched(networks: Any, batch: Any, seeds: Any, levels: Any) -> Tensor:
            if levels is not None:
                seen.append((tuple(seeds), tuple(levels)))
            return tiny_loss(networks, batch, seeds, levels)

        monkeypatch.setattr(tiny_training, "tiny_loss", watched)
        run(str(tmp_path / "state"), validation_levels=3, validation_draws=2)
        row = history(tmp_path / "state")[0]
        assert row["validation_loss"] == pytest.approx(sum(row[f"validation_loss_{n}"] for n in (1, 2, 3)) / 3)
        assert all([int(level * 3) for level in levels] == [0, 0, 1, 1, 2, 2] for _, levels in seen)
        measurements = [tuple(seen[start : start + 3]) for start in range(0, len(seen), 3)]  # 3 items each
        assert len(measurements) == 4 and len(set(measurements)) == 1
        assert len({seed for seeds, _ in seen for seed in seeds}) == 3 * 6

    def test_the_moving_average_is_what_is_saved(self, tmp_path: Path) -> None:
        run(str(tmp_path / "state"), ema_decay=0.5, max_train_steps=2, checkpointing_steps=1)
        values = [
            load_file(tmp_path / "state" / name / "state/parameters.safetensors")
            for name in ("checkpoint-00000001", "final")
        ]
        saved = load_file(tmp_path / "state/final/unet_lora/adapter_model.safetensors")
        name = "unet.base_model.model.to_v.lora_B.default.weight"
        first = torch.zeros_like(values[0][name])  # B starts at zero
        expected = (first * 0.25 + values[0][name] * 0.25) + values[1][name] * 0.5
        torch.testing.assert_close(saved["base_model.model.to_v.lora_B.weight"], expected)


class TestDivergence:
    def test_it_names_the_step_and_the_items(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def items(count: int, name: str) -> Any:
            made = tiny_items(count, name)
            return type(made)(
                made.ids,
                made.shapes,
                lambda n, seed: {"x": torch.full((4,), math.nan)} if n == 3 and name == "item" else made.read(n, seed),
            )

        monkeypatch.setattr(tiny_training, "tiny_items", items)
        with pytest.raises(Diverged, match=r"the loss is nan at step [12] \(items item3\)"):
            run(str(tmp_path / "state"))

    @pytest.mark.parametrize(
        ("step", "good"), [(1, "there is no checkpoint yet"), (3, "the last good checkpoint is .*/checkpoint-00000002")]
    )
    def test_the_session_names_the_last_good_checkpoint(
        self, step: int, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []

        def diverging(networks: Any, batch: Any, seeds: Any, levels: Any) -> Tensor:
            steps.extend([len(steps)] if levels is None else [])
            losses = tiny_loss(networks, batch, seeds, levels)
            return losses * math.nan if len(steps) > 2 * step - 2 and levels is None else losses

        session = tiny_session(tmp_path)
        monkeypatch.setattr(Session, "probe", lambda *_: None)
        monkeypatch.setattr(tiny_training, "tiny_loss", diverging)
        with pytest.raises(UserError, match=rf"^the loss is nan at step {step} \(items .*item.*\); {good}: lower "):
            session.train(all_items(), Checkpoints(tmp_path / "state"), None, tiny_training.LINEAGE)

    def test_a_validation_loss_that_is_not_finite_stops_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured: list[int] = []

        def diverging(networks: Any, batch: Any, seeds: Any, levels: Any) -> Tensor:
            measured.extend([1] if levels is not None else [])
            losses = tiny_loss(networks, batch, seeds, levels)
            return losses * math.inf if levels is not None and len(measured) > 2 * 3 else losses

        monkeypatch.setattr(tiny_training, "tiny_loss", diverging)
        with pytest.raises(Diverged, match=r"the validation loss is inf at step 4"):
            run(str(tmp_path / "state"))
        assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["best-00000002", "checkpoint-00000002"]


class Twin(tiny_training.Net):
    """Two layers of one name, of which one gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.apart = torch.nn.ModuleDict({"to_q": torch.nn.Linear(4, 8)})


class TestProbe:
    def test_the_session_refuses_a_group_without_a_gradient_before_the_first_step(self, tmp_path: Path) -> None:
        session = tiny_session(tmp_path, targets=("to_q", "idle"))
        with pytest.raises(UserError, match=r"^unet: idle would get no gradient, .*adapter\.target_modules"):
            session.train(all_items(), Checkpoints(tmp_path / "state"), None, tiny_training.LINEAGE)
        assert not (tmp_path / "state").exists()

    def test_the_session_lists_single_layers_without_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train_tiny(tmp_path / "sound", max_train_steps=1)
        assert "no gradient" not in capsys.readouterr().err
        monkeypatch.setattr(tiny_training, "Net", Twin)
        train_tiny(tmp_path / "twin", max_train_steps=1)
        assert "train: 1 layers get no gradient and stay as they are: unet.apart.to_q\n" in capsys.readouterr().err

    def check(self, **values: Any) -> list[str]:
        networks = tiny_networks(section(), adapter_section(**values))
        before = {name: value.clone() for name, value in networks.state_dict().items()}
        idle = layers_without_gradient(networks, tiny_items(1, "item"), tiny_loss, Accelerator(cpu=True), 0)
        assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())
        assert all(parameter.grad is None for parameter in networks.parameters())
        return idle

    def test_every_layer_of_a_sound_adapter_gets_a_gradient(self) -> None:
        """Though every A has a zero gradient at the first step, since B is zero."""
        assert self.check() == []

    def test_a_group_without_a_gradient_is_an_error_that_names_it(self) -> None:
        with pytest.raises(NoGradient, match="unet: idle"):
            self.check(target_modules=["to_q", "idle"])


class TestFull:
    def test_a_network_trained_in_full_is_saved_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiny_training.Net, "to_json_string", lambda _: '{"_name": 1, "width": 8}', raising=False)
        run(str(tmp_path / "state"), unet="full")
        saved = load_file(tmp_path / "state/final/unet/diffusion_pytorch_model.safetensors")
        assert saved.keys() == tiny_training.Net().state_dict().keys()
        untouched = tiny_networks(section(unet="full"))["unet"].state_dict()
        moved = {name for name, value in saved.items() if not torch.equal(value, untouched[name])}
        assert {name.split(".")[0] for name in moved} == {"to_q", "to_v", "idle"} - ({"idle"} - {n[:4] for n in moved})
        assert json.loads((tmp_path / "state/final/unet/config.json").read_text()) == {"_class_name": "Net", "width": 8}

    def test_the_optimizer_has_what_is_trained_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Stepper] = []
        monkeypatch.setattr("framelora.training.loop.Stepper", lambda *given: made.append(Stepper(*given)) or made[0])
        run(str(tmp_path / "state"), max_train_steps=1)
        [stepper] = made
        stepped = [parameter for group in stepper.optimizer.param_groups for parameter in group["params"]]
        names = [name for name, _ in tiny_networks(section())["unet"].named_parameters(prefix="unet")]
        adapters = [name for name in names if ".lora_" in name]
        assert sorted(stepper.parameters) == sorted(adapters)
        assert len(adapters) == 4 and len(names) == 4 + 6
        assert [id(value) for value in stepped] == [id(value) for value in stepper.parameters.values()]
        saved = {name.partition("|")[0] for name in read_checkpoint(tmp_path / "state/final").tensors["optimizer"]}
        assert saved == set(adapters)


class TestStart:
    def test_a_run_begins_with_the_earlier_adapter_that_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its validation loss at step 0 is what the earlier run ended with, under another alpha too."""
        train_tiny(tmp_path / "earlier", max_train_steps=3)
        monkeypatch.chdir(tmp_path)
        shutil.copytree(tmp_path / "earlier/state/final/unet_lora", tmp_path / "models/start/earlier")
        ended = read_checkpoint(tmp_path / "earlier/state/final").scalars["history"][-1]["validation_loss"]
        for name, alpha in (("same", 2.0), ("other", 5.0)):
            adapter = {"start_from": "models/start/earlier", "alpha": alpha}
            begun = train_tiny(tmp_path / name, adapter=adapter, max_train_steps=1).scalars["history"][0]
            assert begun["validation_loss"] == pytest.approx(ended, rel=1e-5)
        anew = train_tiny(tmp_path / "anew", max_train_steps=1).scalars["history"][0]
        assert abs(anew["validation_loss"] - ended) > 0.01


class TestControlNet:
    def test_its_learning_rate_is_its_own(self, tmp_path: Path) -> None:
        """AdamW's first step moves every value by its learning rate: here B, which begins at zero."""

        def loss(unet: Any, batch: Any, seeds: Any, base: Any, params: Any, levels: Any, controlnet: Any) -> Tensor:
            value: Tensor = (unet(batch["x"]) + controlnet(batch["x"]) - batch["x"]).square().mean(dim=1)
            return value

        for rate, expected in ((0.002, 0.002), (None, 0.05)):
            folder = tmp_path / f"{rate}"
            session = tiny_session(
                folder, controlnet="lora", controlnet_learning_rate=rate, max_train_steps=1, lr_warmup_steps=0
            )
            session.family.loss = loss
            session.family.load_controlnet = lambda *_: tiny_training.Net()
            session.train(all_items(), Checkpoints(folder / "state"), None, tiny_training.LINEAGE)
            for network, moved in (("unet", 0.05), ("controlnet", expected)):
                saved = load_file(folder / f"state/final/{network}_lora/adapter_model.safetensors")
                values = saved["base_model.model.to_v.lora_B.weight"].abs()
                torch.testing.assert_close(values, torch.full_like(values, moved), rtol=1e-2, atol=0)


class TestPublish:
    @pytest.mark.parametrize("chosen", ["final", "best"])
    def test_the_weights_that_are_named_go_to_models_adapter(
        self, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from stages.train import Run

        run(str(tmp_path / "state"), learning_rate=0.3, max_train_steps=6)
        best = json.loads((tmp_path / "state/final" / STATE).read_bytes())["best"]["step"]
        assert best < 6
        folders = {"final": "final", "best": f"best-{best:08d}"}
        cells = {name: SimpleNamespace(kind="cell", key=name, inputs={"versions": {}}) for name in folders}
        payloads = {name: pack_files(read_files(tmp_path / "state" / folder)) for name, folder in folders.items()}
        sections = {"train": section(publish=chosen)}
        finished: Any = SimpleNamespace(
            cells=lambda: cells,
            store=SimpleNamespace(read=lambda _, key: (None, payloads[key])),
            params=tiny_training.SHIPPED.model_copy(update=sections),
            family=SimpleNamespace(noise_level=lambda quantile, _: quantile),
            final=cells["final"],
        )
        monkeypatch.chdir(tmp_path)
        Run.publish(finished)
        published = read_files(tmp_path / "models/adapter")
        assert published == read_files(tmp_path / "state" / folders[chosen] / "unet_lora")
        other = {"final": "best", "best": "final"}[chosen]
        assert published != read_files(tmp_path / "state" / folders[other] / "unet_lora")


def scaled(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Let the runs of a test scale their losses as under fp16 on a GPU."""

    def accelerator(**given: Any) -> Any:
        made = Accelerator(**given)
        made.scaler = torch.amp.GradScaler("cpu", **options)
        return made

    monkeypatch.setattr(tiny_training, "Accelerator", accelerator)


class TestLossScaling:
    """fp16's loss scaling, with torch's scaler on the CPU; factors are powers of two, so nothing is rounded."""

    @pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
    def test_gradients_are_unscaled_before_they_are_clipped(
        self, max_grad_norm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(str(tmp_path / "plain"), max_grad_norm=max_grad_norm, adam_epsilon=0.01)
        scaled(monkeypatch, init_scale=2.0**12, growth_interval=2)
        run(str(tmp_path / "scaled"), max_grad_norm=max_grad_norm, adam_epsilon=0.01)
        assert history(tmp_path / "scaled") == history(tmp_path / "plain")
        weights = [read_files(tmp_path / name / "final/unet_lora") for name in ("plain", "scaled")]
        assert weights[0] == weights[1]
        state = json.loads((tmp_path / "scaled/final" / STATE).read_bytes())["scaler"]
        assert state["scale"] == 2.0**14  # it grew after steps 2 and 4

    def test_an_overflow_skips_the_step_and_lowers_the_scale(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scaled(monkeypatch, init_scale=2.0**127)
        loss = tiny_loss
        monkeypatch.setattr(tiny_training, "tiny_loss", lambda *given: 8 * loss(*given))
        run(str(tmp_path / "state"), max_train_steps=1, adapter={"dropout": 0.0})
        assert history(tmp_path / "state")[1]["grad_norm"] == 0.0
        found = read_checkpoint(tmp_path / "state/final")
        assert found.scalars["scaler"]["scale"] == 2.0**126
        name = "base_model.model.to_v.lora_B.default.weight"
        assert not found.tensors["parameters"][f"unet.{name}"].any()
        assert not found.tensors["optimizer"]

    def test_its_state_is_saved_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scaled(monkeypatch, init_scale=2.0**4, growth_interval=3)
        for name in ("whole", "part"):
            run(str(tmp_path / name))
        for name in ("final", "checkpoint-00000004"):
            shutil.rmtree(tmp_path / "part" / name)
        run(str(tmp_path / "part"))
        state = read_checkpoint(tmp_path / "part/final").scalars["scaler"]
        assert (state["scale"], state["_growth_tracker"]) == (2.0**5, 2)
        assert final(tmp_path / "part") == final(tmp_path / "whole")


class TestTrackers:
    def test_tensorboard_gets_the_history(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run(str(tmp_path / "state"), report_to=["tensorboard"])
        [folder] = {path.parent for path in (tmp_path / "logs").glob("*/events*")}
        events = EventAccumulator(str(folder)).Reload()
        for name in ("loss", "learning_rate", "grad_norm", "validation_loss", "validation_loss_2"):
            rows = [row for row in history(tmp_path / "state")[1:] if name in row]
            scalars = events.Scalars(name)
            assert [scalar.step for scalar in scalars] == [row["step"] for row in rows]
            assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in rows])

    def test_a_missing_tracker_is_one_clear_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
        with pytest.raises(UserError, match=r"train\.report_to: wandb is not installed: `pip install wandb`"):
            check_installed(["tensorboard", "wandb"])


class TestClipping:
    def test_gradients_are_scaled_to_the_norm_and_the_norm_before_is_told(self) -> None:
        parameters = {name: torch.nn.Parameter(torch.zeros(3)) for name in ("a", "b")}
        stepper = Stepper(parameters, dict.fromkeys(parameters, 0.1), section())
        for parameter, value in zip(parameters.values(), (3.0, 4.0), strict=True):
            parameter.grad = torch.tensor([value, 0.0, 0.0])
        assert stepper.clip(0.05, None) == pytest.approx(5.0)
        assert parameters["a"].grad is not None and parameters["b"].grad is not None
        assert parameters["a"].grad[0].item() == pytest.approx(0.03, rel=1e-4)
        assert parameters["b"].grad[0].item() == pytest.approx(0.04, rel=1e-4)
