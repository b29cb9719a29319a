"""What a person types outside the graph: the cell store, base models, and a look at the set-up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from framelora.base_model import LOCK, fingerprint, verify, write_lock
from framelora.cells import upkeep
from framelora.cells.store import open_store
from framelora.commands import adapters, compare, fork, generate, metrics, preset, sweep
from framelora.commands.interpolate_cli import interpolate_command
from framelora.commands.validate import validate
from framelora.console import UserError, command, relative, say
from framelora.dataset.sources import group, walk
from framelora.params import load_params

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
cells = typer.Typer(invoke_without_command=True, help="The store of computed cells.")
app.add_typer(cells, name="cells")
app.add_typer(adapters.app)
app.command("interpolate")(interpolate_command)
app.command()(validate)
app.command("preset")(command(preset.apply))
app.command("fork")(command(fork.fork))
app.add_typer(generate.app)


def readable(num_bytes: int) -> str:
    """Bytes in binary units, for people."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@cells.callback()
@command
def show(context: typer.Context) -> None:
    """List the kinds of cells with their number and bytes."""
    if context.invoked_subcommand:
        return
    store = open_store()
    table = Table(title=f"cells in {relative(store.root)}", title_justify="left")
    table.add_column("kind")
    table.add_column("cells", justify="right")
    table.add_column("bytes", justify="right")
    kinds = upkeep.summary(store)
    for kind, (count, num_bytes) in kinds.items():
        table.add_row(kind, f"{count}", readable(num_bytes))
    table.add_section()
    table.add_row("all", f"{sum(c for c, _ in kinds.values())}", readable(sum(b for _, b in kinds.values())))
    Console().print(table)


@cells.command("verify")
@command
def verify_cells(
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged cells; their stages refill them.")] = False,
) -> None:
    """Read every cell and compare it with its digest."""
    checked, broken = upkeep.damaged(open_store(), repair=repair)
    for line in broken:
        say(f"damaged: {line}")
    say(f"{checked} cells read, {len(broken)} damaged{' and removed' if repair and broken else ''}")
    if broken and not repair:
        raise UserError("damaged cells: `framelora cells verify --repair` removes them, the next run refills them")


@cells.command("gc")
@command
def collect(
    days: Annotated[float, typer.Option(min=0, help="Keep what was used within this many days.")] = 14,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
) -> None:
    """Drop cells that no index of a registered checkout names and nothing has used for some days."""
    dropped, num_bytes, checkouts = upkeep.collect_garbage(open_store(), days=days, dry_run=dry_run)
    for checkout in checkouts:
        say(f"kept: all that the indexes of {checkout} name")
    say(f"{'would drop' if dry_run else 'dropped'} {dropped} cells, {readable(num_bytes)}")


@app.command()
@command
def lock(base: Annotated[Path, typer.Argument(help="Folder of a base model.")]) -> None:
    """Write the lock file of a base model: the digests by which the pipeline knows it."""
    path = write_lock(base)
    say(f"wrote {relative(path)}: fingerprint {fingerprint(base)[:16]}")


@app.command()
@command
def doctor(
    full: Annotated[
        bool, typer.Option("--full", help="Also compare every byte of the base model with its lock.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also estimate the memory of training.")] = False,
    preset: Annotated[
        Path | None, typer.Option(help="Only estimate the memory of training with a preset, before it is applied.")
    ] = None,
) -> None:
    """Check what would otherwise fail later: params.yaml, the data folder, the base model, the disk."""
    if preset is not None:
        from framelora.commands import memory as estimates  # here, since torch comes with it

        estimates.show(estimates.preset_params(preset))
        return
    params = load_params()
    say("params.yaml: ok")
    root = Path(params.data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {relative(root)} does not exist: create the folder and put clips into it")
    found = group(walk(root), images=params.data.images)[0]
    if not found:
        raise UserError(f"data.root: {relative(root)} holds no clip and no image pair: put some into it")
    say(f"{relative(root)}: {len(found)} clips{', images' if params.data.images else ''} and image pairs")
    base = Path(params.model.base)
    say(f"{relative(base)}: fingerprint {fingerprint(base)[:16]}")
    if full and (changed := verify(base)):
        raise UserError(f"{relative(base / changed[0])} differs from {LOCK}: restore it, or lock the base anew")
    if not Path("models/start").is_dir():
        raise UserError("models/start does not exist: `git checkout models/start` brings it back (train depends on it)")
    say(f"disk: {readable(shutil.disk_usage(open_store().root).free)} free for cells")
    if memory:
        from framelora.commands import memory as estimates

        estimates.show(params)


app.command("metrics")(command(metrics.show))
app.command("compare")(command(compare.compare))
app.command("sweep")(command(sweep.sweep))
