"""Which files a module's meaning depends on, and the digest of it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from framelora import source
from framelora.source import import_closure, imports, meaning

WORK = '''"""What it does."""

from framelora.tools import scale

FACTOR = 2  # twice


def work(x: int) -> int:
    """Work on a number.

    Args:
        x: the number.
    """
    return FACTOR * scale(x)


class Worker:
    """Works."""

    async def later(self) -> None:
        """Do nothing."""
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository: `work` imports `tools`, which imports `deep.tools`; nothing imports `other`."""
    write(tmp_path, "framelora/work.py", WORK)
    write(
        tmp_path, "framelora/tools.py", "from framelora.deep import tools\n\ndef scale(x):\n    return tools.BASE * x\n"
    )
    write(tmp_path, "framelora/deep/tools.py", "BASE = 3\n")
    write(tmp_path, "framelora/other.py", "BASE = 4\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert text.count(old) == 1
    (root / name).write_text(text.replace(old, new))


def digest(root: Path, module: str = "framelora.work") -> str:
    """`source_digest` as the tree's own copy of source.py computes it, in a fresh state."""
    copy = root / "framelora" / "source.py"
    shutil.copy(source.__file__, copy)
    spec = importlib.util.spec_from_file_location("copy_of_source", copy)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh.source_digest(module)


def imported(root: Path, text: str, family: str = "") -> set[str]:
    """What a module of this text imports, as paths inside the tree."""
    path = write(root, "framelora/deep/module.py", text)
    return {found.relative_to(root).as_posix() for found in imports(path, family, root)}


# What counts


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # twice", ""),
        ("  # twice", "  # two times"),
        ('"""What it does."""', '"""What it does, told better."""'),
        ('"""What it does."""\n', ""),
        ('"""Works."""', '"""Works hard."""'),
        ('"""Do nothing."""', '"""Do\n        nothing.\n        """'),
        ("        x: the number.\n", ""),
        ("\n\ndef work", "\n\n\n\n\ndef work"),
        ("return FACTOR * scale(x)", "return (\n        FACTOR\n        * scale(x)\n    )"),
        ("return FACTOR * scale(x)", "return FACTOR*scale( x )  # noqa"),
        ("FACTOR = 2", "FACTOR = 0x2"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tree: Path, old: str, new: str) -> None:
    before = digest(tree)
    edit(tree, "framelora/work.py", old, new)
    assert digest(tree) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2", "FACTOR = 3"),
        ("FACTOR = 2", "FACTOR = 2.0"),
        ("FACTOR * scale(x)", "scale(x) * FACTOR"),
        ("return FACTOR", "print('a message')\n    return FACTOR"),
        ("x: int", "x: float"),
        ("import scale", "import scale as scale"),
        ("async def later", "def later"),
    ],
)
def test_a_changed_constant_or_statement_counts(tree: Path, old: str, new: str) -> None:
    before = digest(tree)
    edit(tree, "framelora/work.py", old, new)
    assert digest(tree) != before


def test_a_string_that_is_a_value_counts(tmp_path: Path) -> None:
    one = write(tmp_path, "one.py", 'def f():\n    "a docstring"\n    return "a value"\n')
    two = write(tmp_path, "two.py", 'def f():\n    "another docstring"\n    return "a value"\n')
    three = write(tmp_path, "three.py", 'def f():\n    "a docstring"\n    return "another value"\n')
    assert meaning(one) == meaning(two) != meaning(three)


def test_a_function_with_nothing_but_a_docstring_has_a_meaning(tmp_path: Path) -> None:
    one = write(tmp_path, "one.py", 'def f():\n    "a docstring"\n')
    two = write(tmp_path, "two.py", "def f():\n    pass\n")
    assert meaning(one) != meaning(two)
    assert meaning(write(tmp_path, "empty.py", "")) == meaning(write(tmp_path, "doc.py", '"""Only this."""\n'))


@pytest.mark.parametrize("name", ["framelora/tools.py", "framelora/deep/tools.py"])
def test_an_edit_of_an_imported_module_counts_near_and_far(tree: Path, name: str) -> None:
    before = digest(tree)
    with (tree / name).open("a") as file:
        file.write("# a comment\n")
    assert digest(tree) == before
    with (tree / name).open("a") as file:
        file.write("NEW = 1\n")
    assert digest(tree) != before


def test_an_edit_of_a_module_that_is_not_imported_does_not_count(tree: Path) -> None:
    before = digest(tree)
    edit(tree, "framelora/other.py", "4", "5")
    write(tree, "framelora/new.py", "NEW = 1\n")
    assert digest(tree) == before


def test_the_digest_does_not_depend_on_where_the_repository_lies(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep/er"
    shutil.copytree(tree, elsewhere)
    assert digest(elsewhere) == digest(tree)


def test_a_renamed_module_counts(tree: Path) -> None:
    before = digest(tree)
    (tree / "framelora/deep/tools.py").rename(tree / "framelora/deep/gear.py")
    edit(tree, "framelora/tools.py", "from framelora.deep import tools", "from framelora.deep import gear as tools")
    assert digest(tree) != before


def test_a_module_that_is_not_of_this_repository_is_refused(tree: Path) -> None:
    for module in ("json", "framelora.nothing", "framelora.deep", "framelora"):
        with pytest.raises(ValueError, match="is not a module of this repository"):
            digest(tree, module)


def test_every_module_of_this_repository_has_a_digest() -> None:
    files = sorted((source.REPOSITORY / "framelora").rglob("*.py"))
    assert files
    for path in files:
        if path.name != "__init__.py":
            assert path in import_closure(path)
    assert source.source_digest("framelora.files") == source.source_digest("framelora.files")
    assert source.source_digest("framelora.files") != source.source_digest("framelora.digest")


# What is imported


@pytest.mark.parametrize(
    "text",
    [
        "import framelora.tools",
        "import framelora.tools as t",
        "import json, framelora.tools",
        "from framelora import tools",
        "from framelora.tools import scale",
        "from framelora.tools import scale as s, BASE",
        "from framelora.tools import *",
        "def f():\n    from framelora.tools import scale",
        "try:\n    import framelora.tools\nexcept ImportError:\n    pass",
        "class A:\n    if True:\n        import framelora.tools",
        "from ..tools import scale",
        "from .. import tools",
    ],
)
def test_every_way_to_import_a_module_is_seen(tree: Path, text: str) -> None:
    assert imported(tree, text) == {"framelora/tools.py"}


def test_an_import_relative_to_the_own_package_is_seen(tree: Path) -> None:
    assert imported(tree, "from .tools import BASE") == {"framelora/deep/tools.py"}
    assert imported(tree, "from . import tools") == {"framelora/deep/tools.py"}


@pytest.mark.parametrize(
    "text",
    ["import json", "from numpy import random", "import framelora", "from framelora import deep", "import other.tools"],
)
def test_other_peoples_modules_and_bare_packages_are_no_files_of_ours(tree: Path, text: str) -> None:
    assert imported(tree, text) == set()


def test_imports_for_type_checkers_do_not_count_and_their_else_does(tree: Path) -> None:
    guarded = "if TYPE_CHECKING:\n    import framelora.other\n    if True:\n        import framelora.work\n"
    text = f"from typing import TYPE_CHECKING\n{guarded}"
    assert imported(tree, text) == set()
    assert imported(tree, text + "else:\n    import framelora.tools\n") == {"framelora/tools.py"}
    assert imported(tree, "if not TYPE_CHECKING:\n    import framelora.tools\n") == {"framelora/tools.py"}
    assert imported(tree, text + "import framelora.other\n") == {"framelora/other.py"}


@pytest.mark.parametrize(
    "call",
    [
        'load_part("x", "encode")',
        "load_part(params.family, 'encode').Encoder(3)",
        'source.load_part(name, "encode")',
        'load_part(name, part="encode")',
        'load_part(family="x", part="encode")',
    ],
)
def test_a_part_of_a_family_loaded_by_name_is_followed(tree: Path, call: str) -> None:
    write(tree, "framelora/families/x/encode.py", "")
    write(tree, "framelora/families/x/loss.py", "")
    write(tree, "framelora/families/y/encode.py", "")
    assert imported(tree, f"def f():\n    return {call}\n", "x") == {"framelora/families/x/encode.py"}


def test_a_part_of_a_family_brings_what_it_imports(tree: Path) -> None:
    entry = write(tree, "stages/encode.py", 'from framelora.source import load_part\nload_part("x", "encode")\n')
    write(tree, "framelora/families/x/encode.py", "import framelora.tools\n")
    closure = {path.relative_to(tree).as_posix() for path in import_closure(entry, "x", tree)}
    tools = {"framelora/tools.py", "framelora/deep/tools.py"}
    assert closure == {"stages/encode.py", "framelora/families/x/encode.py", *tools}
    assert import_closure(entry, "y", tree) == {entry}


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    one = write(tmp_path, "framelora/one.py", "import framelora.two\n")
    two = write(tmp_path, "framelora/two.py", "import framelora.one\n")
    assert import_closure(one, root=tmp_path) == import_closure(two, root=tmp_path) == {one, two}
