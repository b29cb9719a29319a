"""Which source files a module needs, and a digest of what they do.

A cell's key holds the digest of the code that computes it. It is taken from the syntax tree, so comments, docstrings
and layout do not count; everything the module imports from this repository does.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from types import ModuleType

from framelora.digest import canonical_json, sha256

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("framelora", "stages")


def load_part(family: str, part: str) -> ModuleType:
    """Import one module of a model family, for example `load_part("framer", "encode")`.

    Families are reached by name alone, so that a stage's code depends on the family it uses and on no other.
    `import_closure` knows this call.
    """
    return importlib.import_module(f"framelora.families.{family}.{part}")


def module_file(module: str, root: Path = REPOSITORY) -> Path | None:
    """The file of a module of this repository, or None for a package folder or somebody else's module."""
    if module.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def imports(path: Path, family: str = "", root: Path = REPOSITORY) -> set[Path]:
    """Files of this repository that one file imports, anywhere in it (imports for type checkers do not count)."""
    tree = ast.parse(path.read_bytes())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[Path | None] = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {module_file(name.name, root) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found.add(module_file(module, root))
            found |= {module_file(f"{module}.{name.name}", root) for name in node.names}
        elif isinstance(node, ast.Call) and called_name(node) == "load_part":
            for part in [*node.args[1:], *(keyword.value for keyword in node.keywords)]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found.add(module_file(f"framelora.families.{family}.{part.value}", root))
    return {file for file in found if file is not None}


def called_name(call: ast.Call) -> str:
    """The last part of what is called: `f` in `f()` and in `module.f()`; empty for anything else."""
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def import_closure(entry: Path, family: str = "", root: Path = REPOSITORY) -> set[Path]:
    """A file and every file of this repository that it imports, directly or not."""
    closure, waiting = set(), [entry]
    while waiting:
        path = waiting.pop()
        if path not in closure:
            closure.add(path)
            waiting.extend(imports(path, family, root))
    return closure


def meaning(path: Path) -> str:
    """A file's syntax tree without docstrings, as text."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def source_digest(module: str) -> str:
    """Digest of the meaning of a module and of all it imports from this repository."""
    entry = module_file(module)
    if entry is None:
        raise ValueError(f"{module} is not a module of this repository")
    files = sorted(import_closure(entry))
    return sha256(canonical_json([[f.relative_to(REPOSITORY).as_posix(), meaning(f)] for f in files]).encode())
