"""Runs of `python -m offline`, and the rows that they write."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.export_cli import ROOT, ModelStore
from tests.support.processes import descendants
from tests.support.scene_images import scene_png

_RUN_S = 300
_KILLER = """
import os, signal
from fsspec import AbstractFileSystem

class KillerFiles(AbstractFileSystem):
    protocol = "killer"

    def open(self, path, mode="rb", **options):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True, slots=True)
class OfflineJob:
    """One job over a folder of images."""

    store: ModelStore
    model: str
    fields: Mapping[str, str]  # task included
    images: Path
    output: Path
    shard_size: int

    @property
    def num_parts(self) -> int:
        return -(-len(list(self.images.iterdir())) // self.shard_size)

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        """Start a run of the job; kill it at the end if it still runs."""
        options = ["--task", self.fields["task"], "--model", self.model]
        options += ["--output", str(self.output), "--shard-size", str(self.shard_size)]
        options += [f"-F{name}={value}" for name, value in self.fields.items() if name != "task"]
        process = subprocess.Popen(
            [sys.executable, "-m", "offline", str(self.images), *options],
            cwd=ROOT,
            env=os.environ | {"BENTOML_HOME": str(self.store.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Run the job to its end."""
        with self.running() as process:
            stdout, stderr = process.communicate(timeout=_RUN_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def write_scenes(folder: Path, count: int) -> Path:
    """Write different scenes as PNG."""
    folder.mkdir(parents=True)
    for seed in range(count):
        (folder / f"{seed:04}.png").write_bytes(scene_png(seed))
    return folder


def install_killer_files(folder: Path) -> Path:
    """Install a package with a file system `killer://` of fsspec's: to open a file of it kills the
    process.
    """
    info = folder / "killer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: killer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fsspec.specs]\nkiller = killer.KillerFiles\n")
    (folder / "killer.py").write_text(_KILLER)
    return folder


def actor_of(run: "subprocess.Popen[str]") -> int | None:
    """Return the process that holds the model, or None before it starts."""
    for pid in descendants(run.pid):
        if "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


def parquet_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows of all shards, in order, with their results as JSON values."""
    rows: list[dict[str, Any]] = []
    for part in sorted(output.glob("part-*.parquet")):
        rows += pq.read_table(part).to_pylist()
    for row in rows:
        row["result"] = json.loads(row["result"] or "null")
    return rows
