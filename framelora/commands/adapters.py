"""Adapters as things of their own: export, import, combine, merge, show."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from framelora import files
from framelora.base_model import fingerprint
from framelora.console import UserError, command, one_line, relative, say, warn
from framelora.params import load_params
from framelora.report.run import read_commit
from framelora.source import load_part

if TYPE_CHECKING:
    from framelora.adapters.state import LoraState

app = typer.Typer()
BaseOption = Annotated[Path | None, typer.Option("--base", help="Folder of the base model; else model.base.")]
OutOption = Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")]


class Workbench:
    """The model family and base of params.yaml, as adapters see them."""

    def __init__(self, base: Path | None) -> None:
        from framelora.adapters.single_file import Naming
        from framelora.adapters.state import linear_shapes

        self.params = load_params()
        self.base = base or Path(self.params.model.base)
        fingerprint(self.base)  # says what is missing
        self.keys: Any = load_part(self.params.model.family, "keys")
        if not (self.base / self.keys.NETWORK / "config.json").is_file():
            raise UserError(
                f"{relative(self.base)} is no base of model.family {self.params.model.family}: "
                f"{self.keys.NETWORK}/config.json is missing: name another folder, or another family in params.yaml"
            )
        self.naming = Naming(self.keys.NETWORK, self.keys.KOHYA_PREFIX, self.keys.original_name)
        self.shapes = functools.cache(lambda: linear_shapes(self.keys.empty_denoiser(self.base)))

    def read(self, path: Path) -> LoraState:
        """Read an adapter and see that it fits."""
        from framelora.adapters.files import read_adapter

        with bad_adapters():
            return read_adapter(path, self.naming, self.shapes)


@contextmanager
def bad_adapters() -> Iterator[None]:
    """Turn what is wrong with an adapter or a base into a line for the user."""
    try:
        yield
    except ValueError as error:  # BadAdapter, Unsupported
        raise UserError(str(error)) from None
    except OSError as error:  # of diffusers too: a network without its weights
        raise UserError(f"{one_line(error)}: restore the file, or name another") from None


def parse_weighted(text: str) -> tuple[Path, float]:
    """`PATH@WEIGHT` or `PATH` (weight 1). Raises `UserError` for a weight that is no finite number."""
    path, at, weight = text.rpartition("@")
    if not at:
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        raise UserError(f"{text}: {weight!r} is not a number: write PATH@WEIGHT, for example {path}@0.15") from None
    if not math.isfinite(value):
        raise UserError(f"{text}: the weight must be finite")
    if value < 0:
        warn(f"warning: {text}: a negative weight takes away what the adapter learned")
    return Path(path), value


def adapter_output(folder: Path) -> Path:
    """A folder that may be replaced: none yet, an empty one, or an adapter. Raises `UserError`."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "adapter_config.json").exists()
    ):
        raise UserError(f"-o {relative(folder)} exists and is no adapter: name another folder")
    return folder


@app.command("export")
@command
def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter in any form, for example models/adapter.")],
    output: OutOption,
    form: Annotated[str, typer.Option("--format", help="peft, diffusers or kohya (EasyAnimate, ComfyUI).")] = "kohya",
    base: BaseOption = None,
    licence: Annotated[str, typer.Option(help="Licence for the model card.")] = "other",
) -> None:
    """Write an adapter in another form, with a model card beside it."""
    from framelora.adapters.card import model_card
    from framelora.adapters.files import FORMS, adapter_bytes
    from framelora.adapters.state import LoraState, without_effect

    if form not in FORMS:
        raise UserError(f"--format {form}: choose one of {', '.join(FORMS)}")
    if form != "peft" and output.suffix != ".safetensors":
        raise UserError(f"-o {output}: this form is one file: call it something.safetensors")
    if form == "peft":
        adapter_output(output)
    bench = Workbench(base)
    state = bench.read(adapter)
    idle = [name for name in bench.keys.idle_layers(list(bench.shapes())) if name in state.layers]
    commit = read_commit(Path())
    state = LoraState(without_effect(state, idle).layers, state.lineage | ({"commit": commit} if commit else {}))
    with bad_adapters():
        contents = adapter_bytes(state, form, bench.naming)
    sheets = sorted(Path("reports/render/sheets").glob("*.png")) if adapter == Path("models/adapter") else []
    name = output.stem if form != "peft" else output.name
    card = model_card(
        state,
        name=name,
        path=output.name,
        form=form,
        network=bench.naming.network,
        licence=licence,
        idle=idle,
        sheet=bool(sheets),
    )
    beside = {"README.md" if form == "peft" else f"{name}.md": card.encode()}
    if sheets:
        beside["contact_sheet.png"] = sheets[0].read_bytes()
    if form == "peft":
        files.replace_folder(output, contents | beside)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, data in {output.name: contents[""], **beside}.items():
            files.write_bytes(output.with_name(file), data)
    say(f"wrote {relative(output)}: {len(state.layers)} layers, {form}")
    if idle:
        say(f"{len(idle)} of them reach no output of the model and hold zeros: {', '.join(idle)}")


@app.command("import")
@command
def import_adapter(
    adapter: Annotated[Path, typer.Argument(help="Adapter in any form.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write  [beside the adapter: NAME of NAME.safetensors]"),
    ] = None,
    base: BaseOption = None,
) -> None:
    """Read an adapter of any form, see that it fits the base, and write it as a PEFT folder."""
    from framelora.adapters.peft_folder import folder_files

    if output is None:
        if adapter.is_dir():
            raise UserError(f"{relative(adapter)} is a folder already: name another to write with -o")
        output = adapter.with_suffix("")
        if output == adapter:
            raise UserError(f"{relative(adapter)} does not end in .safetensors: name the folder to write with -o")
    adapter_output(output)
    state = Workbench(base).read(adapter)
    files.replace_folder(output, folder_files(state))
    say(f"wrote {relative(output)}: {len(state.layers)} layers")


@app.command("combine")
@command
def combine_adapters(
    adapters: Annotated[list[str], typer.Argument(help="PATH@WEIGHT, two or more.")],
    output: OutOption,
    rank: Annotated[int | None, typer.Option(min=1, help="Recompress to this rank; the error is printed.")] = None,
    base: BaseOption = None,
) -> None:
    """Write one adapter that at weight 1 does what several do together, each at its weight."""
    from framelora.adapters.combine import combine, compress
    from framelora.adapters.peft_folder import folder_files

    adapter_output(output)
    bench = Workbench(base)
    weighted = [parse_weighted(text) for text in adapters]
    states = [(bench.read(path), weight) for path, weight in weighted]
    with bad_adapters():
        state = combine(states)
    ranks = f"rank {max(layer.rank for layer in state.layers.values())}"
    if rank is not None:
        state, error = compress(state, rank)
        ranks += f", recompressed to {rank}: {100 * error:.2f} % of the change is lost"
    files.replace_folder(output, folder_files(state))
    say(f"wrote {relative(output)}: {len(state.layers)} layers, {ranks}")


@app.command("merge")
@command
def merge_adapter(
    adapter: Annotated[str, typer.Argument(help="PATH@WEIGHT.")],
    output: OutOption,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float8_e4m3fn.")] = "float32",
    max_error: Annotated[float, typer.Option(min=0, help="Largest share of the change that may be lost.")] = 0.05,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Write it all the same, with a warning.")] = False,
    base: BaseOption = None,
) -> None:
    """Write the base's denoiser with an adapter in its weights, computed in fp32."""
    from framelora.adapters.merge import MERGE_DTYPES, merge

    if dtype not in MERGE_DTYPES:
        raise UserError(f"--dtype {dtype}: choose one of {', '.join(MERGE_DTYPES)}")
    if output.exists():
        raise UserError(f"-o {relative(output)} exists: name a new folder")
    path, weight = parse_weighted(adapter)
    bench = Workbench(base)
    state = bench.read(path)
    if state.dora:
        raise UserError(
            f"{path} is a DoRA adapter: its change is not low-rank: use it live, by "
            "`framelora generate --adapter` or in renders"
        )
    import torch

    with bad_adapters():
        denoiser = load_part(bench.params.model.family, "loss").load_denoiser(bench.base, torch.float32)
    error = merge(denoiser, state, weight, MERGE_DTYPES[dtype])
    line = (
        f"{dtype} loses {100 * error.share:.1f} % of the change at weight {weight:g} "
        f"(most in {error.worst_layer}: {100 * error.worst_share:.1f} %)"
    )
    if error.share > max_error:
        if not accept_loss:
            raise UserError(f"{line}: merge to float32, use the adapter live, or give --accept-loss")
        warn(f"warning: {line}")
    denoiser.save_pretrained(output)
    say(f"wrote {relative(output)}: {line}")


@app.command("show")
@command
def show_adapter(
    adapter: Annotated[Path, typer.Argument(help="Adapter in any form.")],
    base: BaseOption = None,
    most: Annotated[int, typer.Option("--layers", min=0, help="List this many layers, largest first.")] = 20,
) -> None:
    """Print where an adapter comes from and how much it changes each layer; see that it fits the base."""
    bench = Workbench(base)
    state = bench.read(adapter)
    for name, value in sorted(state.lineage.items()):
        say(f"{name}: {value}")
    norms = {name: layer.norm() for name, layer in state.layers.items()}
    table = Table(title=f"{len(norms)} layers, norm of the change", title_justify="left")
    for title in ("layer", "rank", "alpha", "norm"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for name in sorted(norms, key=lambda name: -norms[name])[:most]:
        layer = state.layers[name]
        table.add_row(name, str(layer.rank), f"{layer.alpha:g}", f"{norms[name]:.4g}")
    Console().print(table)
    idle = [name for name in bench.keys.idle_layers(list(bench.shapes())) if name in state.layers]
    if idle:
        say(f"no effect on any output: {', '.join(idle)}")
