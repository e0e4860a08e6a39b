"""The output folder: finished cells on disk, and the guard that keeps unlike runs apart.

    DIR/evaluation.json     fingerprint of the configuration the cells belong to
    DIR/cells/*.json        one finished run each, written whole or not at all
    DIR/failures/*.txt      why a run failed; removed when it later succeeds
    DIR/results.parquet, results.csv, summary.csv, report.html

A cell appears under its name only by an atomic rename, so an interrupted evaluation leaves no half
written cell and the next call carries on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from agents.evaluate.config import Cell, EvaluationConfig
from hrl_planner.errors import HrlPlannerError

CellData = dict[str, Any]


class EvaluationError(HrlPlannerError):
    """An output folder that cannot be used as asked."""


class Store:
    """Finished cells under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / "cells"
        self._failures = folder / "failures"
        self._manifest = folder / "evaluation.json"

    def open(self, config: EvaluationConfig, *, force: bool = False) -> None:
        """Create the folder, or check that its cells belong to this configuration.

        Args:
            config: what is about to be run.
            force: throw away cells of another configuration instead of refusing.

        Raises:
            EvaluationError: the folder holds cells of another configuration.
        """
        new = config.fingerprint()
        old = self._read_manifest()
        changed = _differences(old, new) if old is not None else []
        if changed and not force:
            raise EvaluationError(
                f"{self.folder}: holds runs of another configuration "
                f"(different: {', '.join(changed)}); choose another --out, or pass --force to "
                "discard them and start anew"
            )
        if changed:
            shutil.rmtree(self._cells, ignore_errors=True)
            shutil.rmtree(self._failures, ignore_errors=True)
        elif old is not None:
            new["workloads"] = {**old["workloads"], **new["workloads"]}
        self._cells.mkdir(parents=True, exist_ok=True)
        write_atomically(self._manifest, json.dumps(new, indent=1))

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self._path(cell).exists()

    def read(self, cell: Cell) -> CellData:
        """A finished cell."""
        data: CellData = json.loads(self._path(cell).read_text(encoding="utf-8"))
        return data

    def write(self, cell: Cell, data: CellData) -> None:
        """Keep a finished cell."""
        write_atomically(self._path(cell), json.dumps(data, separators=(",", ":")))
        (self._failures / f"{cell.name}.txt").unlink(missing_ok=True)

    def write_failure(self, cell: Cell, details: str) -> Path:
        """Keep why a cell failed, for a person to read."""
        self._failures.mkdir(exist_ok=True)
        path = self._failures / f"{cell.name}.txt"
        write_atomically(path, f"{cell}\n\n{details}\n")
        return path

    def _path(self, cell: Cell) -> Path:
        return self._cells / f"{cell.name}.json"

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            data = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise EvaluationError(f"{self._manifest}: not valid JSON: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("workloads"), dict):
            raise EvaluationError(f"{self._manifest}: not the manifest of an evaluation")
        return data


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that others see the old content or the new, never a part."""
    # The process id keeps two evaluations of the same cell from writing into one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what changed; a spec's fields are named one by one."""
    names = {
        "code": "code or shipped data of simulator or planners",
        "load": "--load",
        "until_s": "--until",
        "grace_s": "grace_s",
    }
    changed = [text for key, text in names.items() if old.get(key) != new[key]]
    old_spec = old.get("spec") or {}
    changed += [f"spec.{f}" for f, value in new["spec"].items() if old_spec.get(f) != value]
    changed += [
        f"workload {label}"
        for label, digest in new["workloads"].items()
        if old["workloads"].get(label, digest) != digest
    ]
    return changed
