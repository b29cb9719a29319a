"""What a person sees: one line a fact on stdout, progress on stderr, one line an error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class UserError(Exception):
    """A mistake that the user can mend: one line with what, where and what to do. Commands exit with code 1."""


def say(line: str) -> None:
    """Print a result on stdout."""
    print(line, flush=True)


def warn(line: str) -> None:
    """Print something the user should know on stderr."""
    print(line, file=sys.stderr, flush=True)


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """A bar on stderr for work over two seconds; silent where stderr is not a terminal."""
    return tqdm(items, desc=label, total=total, delay=2, disable=None, file=sys.stderr)


def one_line(error: Exception) -> str:
    """What an exception says, without breaks."""
    return " ".join(str(error).split())


def relative(path: Path) -> str:
    """A path as messages show it: relative to the repository (the working directory) where it lies inside."""
    resolved = path.absolute()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a typer command `--debug`, and turn `UserError` into one line on stderr and exit code 1."""
    import typer  # here, since the library, which raises UserError, does without it

    @functools.wraps(function)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UserError as error:
            if debug:
                raise
            warn(f"error: {error}")
            raise typer.Exit(1) from None

    # typer reads the options off the signature: add ours behind the command's own.
    import inspect

    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(False, "--debug", help="Show the traceback of an error."),
        annotation=bool,
    )
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return run
