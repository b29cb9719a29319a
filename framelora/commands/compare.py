"""`framelora compare`: runs of several revisions on one page, read through DVC without touching the workspace."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import typer
from ruamel.yaml import YAML

from framelora import files
from framelora.console import UserError, progress, say
from framelora.report.compare import MOST, Revision, build_comparison
from framelora.report.verdict import adapters_of
from framelora.training.stopped import read_stop

if TYPE_CHECKING:
    from dvc.repo import Repo

WORKSPACE = "workspace"
OUT = Path("reports/compare")
BOOTSTRAP, SEED = 1000, 0


def compare(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(help="Git revisions, tags or DVC experiments; `workspace` is the files as they are."),
    ] = None,
) -> None:
    """Set runs side by side on one page: what changed, scores with intervals, losses, the same samples in sync.

    Without revisions: HEAD against the workspace.
    """
    names = revisions or ["HEAD", WORKSPACE]
    names = [names[0], WORKSPACE] if len(names) == 1 else names
    if len(names) > MOST or len(set(names)) < len(names):
        raise UserError(f"compare: name up to {MOST} different revisions")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo()
    except DvcException as error:
        raise UserError(f"compare: {error}: run it in a checkout of the project") from None
    videos: dict[str, bytes] = {}
    with repo:
        found = []
        for number, name in enumerate(progress(names, "reading", len(names))):
            reader = Workspace() if name == WORKSPACE else Snapshot(repo, name)
            found.append(read_revision(reader, f"videos/{number}", videos))
    page = build_comparison(found, bootstrap=BOOTSTRAP, seed=SEED)
    files.replace_folder(OUT, {**videos, "index.html": page.encode()})
    say(f"compare: {OUT / 'index.html'}")


class Workspace:
    """The files as they are."""

    name = WORKSPACE
    commit = ""

    def read(self, path: str) -> bytes:
        """Content of a file."""
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{self.name}: {path} is missing: run `dvc repro`, which makes it") from None

    def stopped(self) -> str | None:
        """Why the last training stopped, if it did."""
        return read_stop()


class Snapshot:
    """A revision: files of git, and outs of DVC's cache."""

    def __init__(self, repo: Repo, name: str) -> None:
        from dvc.api import DVCFileSystem
        from dvc.scm import RevError, resolve_rev

        self.name = name
        try:
            self.commit = str(resolve_rev(repo.scm, name))
        except RevError:
            raise UserError(f"{name} is no revision, tag or experiment: see `git log` and `dvc exp show`") from None
        self.files = DVCFileSystem(repo.root_dir, rev=self.commit)

    def read(self, path: str) -> bytes:
        """Content of a file."""
        from dvc_data.index import DataIndexDirError

        try:
            with self.files.open(path, "rb") as file:
                content: bytes = file.read()
                return content
        except (OSError, DataIndexDirError):  # the latter: a folder's list of files is gone too
            tracked = path not in ("params.yaml", "dvc.lock", "reports/metrics.json")
            where = "DVC's cache" if tracked else "git"
            raise UserError(
                f"{self.name}: {path} is not in {where}: `dvc fetch --all-commits` if it was pushed, "
                f"else `git checkout {self.commit[:8]} && dvc repro` makes it anew"
            ) from None

    def stopped(self) -> str | None:
        """A commit holds finished runs."""
        return None


def read_revision(reader: Workspace | Snapshot, folder: str, videos: dict[str, bytes]) -> Revision:
    """Everything the page shows of a revision; its videos go into `videos`, by their path under the page's folder."""
    yaml = YAML(typ="safe")
    params: dict[str, Any] = yaml.load(io.BytesIO(reader.read("params.yaml")))
    lock = yaml.load(io.BytesIO(reader.read("dvc.lock")))
    sources = table_of(reader, "data/sources.parquet")
    facts: dict[str, Any] = {
        "name": reader.name,
        "commit": reader.commit,
        "params": params,
        "digests": digests(lock),
        "sources": dict(zip(sources.content_id, sources.name, strict=True)),
    }
    stopped = reader.stopped()
    if stopped:
        return Revision(**facts, stopped=stopped)
    metrics = json.loads(reader.read("reports/metrics.json"))
    run = json.loads(reader.read("reports/train/run.json"))
    renders = table_of(reader, "data/renders.parquet")
    paths = {}
    for row in renders.itertuples():
        if row.method in ("truth", "base", *adapters_of(metrics)):
            path = f"{folder}/{row.pair}/{row.method}.mp4"
            videos[path] = reader.read(f"reports/render/{row.video}")
            paths[row.pair, row.method] = path
    return Revision(
        **facts,
        metrics=metrics,
        samples=pd.read_csv(io.BytesIO(reader.read("reports/plots/samples.csv"))),
        loss=pd.read_csv(io.BytesIO(reader.read("reports/train/loss.tsv")), sep="\t"),
        validation=(
            pd.read_csv(io.BytesIO(reader.read("reports/train/validation.tsv")), sep="\t")
            if "validation_loss" in run
            else None
        ),
        pairs=table_of(reader, "data/pairs_test.parquet"),
        videos=paths,
    )


def table_of(reader: Workspace | Snapshot, path: str) -> pd.DataFrame:
    """A Parquet table of a revision."""
    return pd.read_parquet(io.BytesIO(reader.read(path)))


def digests(lock: dict[str, Any]) -> dict[str, str]:
    """The digest of each dependency that dvc.lock names."""
    stages = lock["stages"].values()
    return {dep["path"]: dep.get("md5", "") for stage in stages for dep in stage.get("deps", [])}
