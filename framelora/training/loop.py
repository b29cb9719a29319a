"""The training loop, top to bottom.

Batch order, noise, dropout of conditions and of LoRA inputs are functions of the seed, the step and the process, so a
run that is killed and started again ends in the same bytes (fp32 on a CPU, same torch, threads and processes).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from framelora.digest import draw_seed
from framelora.memory import peak_resident
from framelora.training.checkpoint import Checkpoint, Checkpoints
from framelora.training.items import Items, run_length, run_sampler
from framelora.training.networks import trained_parameters
from framelora.training.optimizer import Stepper, learning_rate_factor, learning_rates
from framelora.training.record import Record
from framelora.training.validation import Diverged, Loss
from framelora.training.world import World

if TYPE_CHECKING:
    from framelora.schema.training import Train


def train(
    networks: nn.ModuleDict,
    items: Items,
    validation: Items,
    loss: Loss,
    params: Train,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    start: Checkpoint | None,
    lineage: Mapping[str, Any],
) -> None:
    """Train the parameters that require gradients; the last checkpoint, `final`, has everything that comes of it.

    Args:
        networks: what takes part in a step, prepared.
        items: what is learned from.
        validation: what the validation loss is measured on; may be empty.
        loss: see `validation.Loss`.
        params: the `train` section.
        accelerator: device, precision and processes.
        checkpoints: where checkpoints go.
        start: what the run goes on from; None begins it.
        lineage: what saved weights tell about their origin, besides the step.

    Raises:
        Diverged: a loss or a gradient became NaN or infinite.
    """
    world = World(accelerator.process_index, accelerator.num_processes)
    length = run_length(items.shapes, params)
    sampler = run_sampler(items.shapes, params)
    trained = trained_parameters(networks)
    stepper = Stepper(trained, learning_rates(networks, params), params)
    factor = learning_rate_factor(params, length.steps)
    record = Record(networks, stepper, params, accelerator, checkpoints, lineage)

    if start is None:
        record.history.append({"step": 0} | record.validate(0, validation, loss))
    else:
        record.restore(start)
    first = 1 if start is None else start.step + 1

    networks.train()
    bar = tqdm(
        range(first, length.steps + 1),
        desc="train",
        initial=first - 1,
        total=length.steps,
        disable=None if accelerator.is_main_process else True,  # None: where stderr is no terminal
    )
    for step in bar:
        began = time.monotonic()
        batches = {number: sampler.batch(number) for number in length.of_step(step)}
        losses = accumulate(networks, batches, items, loss, params, accelerator, world)
        check_finite(losses, batches, items, step)
        world.average_gradients(trained.values())
        grad_norm = stepper.clip(params.max_grad_norm, accelerator.scaler)
        if not math.isfinite(grad_norm) and accelerator.scaler is None:
            raise Diverged(f"the gradient is {grad_norm} at step {step} (items {names(batches, items)})")
        stepper.set_factor(factor(step - 1))
        stepper.step(accelerator.scaler)
        record.update_average()
        seconds = time.monotonic() - began

        row = {
            "step": step,
            "loss": losses.mean().item(),
            "learning_rate": params.learning_rate * factor(step - 1),
            "grad_norm": grad_norm if math.isfinite(grad_norm) else 0.0,  # overflow in fp16: the step was skipped
        }
        if step % params.validation_steps == 0 or step == length.steps:
            row |= record.validate(step, validation, loss)
        record.history.append(row)
        if step % params.checkpointing_steps == 0 or step == length.steps:
            record.save(step, final=step == length.steps)
        accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step)
        bar.set_postfix(
            loss=f"{row['loss']:.4f}",
            lr=f"{row['learning_rate']:.1e}",
            samples=f"{losses.numel() / seconds:.2g}/s",
            memory=f"{peak_memory(accelerator.device) / 2**30:.1f}GiB",
        )


def accumulate(
    networks: nn.ModuleDict,
    batches: Mapping[int, list[int]],
    items: Items,
    loss: Loss,
    params: Train,
    accelerator: Accelerator,
    world: World,
) -> Tensor:
    """Add up the gradients of the batches of one optimizer step, over this process's places in each.

    Returns:
        The losses of all items, over all processes, `[batches, items]`.
    """
    losses = torch.zeros(len(batches), params.train_batch_size * world.processes, device=accelerator.device)
    for row, (number, chosen) in enumerate(batches.items()):
        places = world.places(len(chosen))
        seeds = [draw_seed(params.seed, "train", number, place) for place in places]
        batch = items.batch([chosen[place] for place in places], seeds, accelerator.device)
        torch.manual_seed(draw_seed(params.seed, "dropout", number, world.rank))
        with accelerator.autocast():
            values = loss(networks, batch, seeds, None)
        accelerator.backward(values.mean() / len(batches))
        losses[row, places.start : places.stop] = values.detach()
    return world.sum(losses)


def check_finite(losses: Tensor, batches: Mapping[int, list[int]], items: Items, step: int) -> None:
    """Raise `Diverged` when a loss of a step is not finite; every process sees all of them, so all stop."""
    bad = {
        number: [item for item, value in zip(chosen, row, strict=True) if not math.isfinite(value)]
        for (number, chosen), row in zip(batches.items(), losses.tolist(), strict=True)
    }
    if any(bad.values()):
        raise Diverged(f"the loss is {losses.sum().item()} at step {step} (items {names(bad, items)})")


def names(batches: Mapping[int, list[int]], items: Items) -> str:
    """Ids of the items of some batches."""
    return ", ".join(items.ids[item] for chosen in batches.values() for item in chosen)


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes, of the GPU or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()
