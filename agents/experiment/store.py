"""Finished runs on disk: one file of lines per entry and training seed, only ever appended to.

    RESULTS/runs/ENTRY/seed-N.jsonl   a line per run: cell, training seed, trace, key, code, numbers
    RESULTS/failures/*.txt            why a run failed; removed when it later succeeds

All experiments of a results folder share the runs: an entry that two of them name with the same
policy on the same cell is run once. A line goes to the file in one write under a lock, so that
parallel workers do not mix and a killed one leaves at most a torn last line, which is not a run.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from agents.evaluate.store import write_atomically
from agents.experiment.plan import Run

Line = dict[str, Any]
_Name = tuple[str, str, int, int]  # entry, key, training seed, trace


class RunStore:
    """The runs under a results folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: set[_Name] | None = None

    def __reduce__(self) -> tuple[type[RunStore], tuple[Path]]:
        """Workers only write: they need the folder, not the list of what is done."""
        return RunStore, (self.folder,)

    def has(self, cell: Run) -> bool:
        """Whether a run is finished."""
        if self._done is None:
            self._done = {
                _name_of(entry, line) for entry in self.entries() for line in self.lines(entry)
            }
        return _name(cell) in self._done

    def write(self, cell: Run, data: Line) -> None:
        """Keep a finished run."""
        append(self._path(cell), data)
        if self._done is not None:
            self._done.add(_name(cell))
        self._failure(cell).unlink(missing_ok=True)

    def write_failure(self, cell: Run, details: str) -> Path:
        """Keep why a run failed, for a person to read."""
        path = self._failure(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{cell}\n\n{details}\n")
        return path

    def entries(self) -> list[str]:
        """Labels of the entries that have runs."""
        return sorted({path.parent.name for path in (self.folder / "runs").glob("*/*.jsonl")})

    def lines(self, entry: str) -> Iterator[Line]:
        """Whole lines of an entry, of each training seed in the order in which runs finished."""
        for path in self._files(entry):
            yield from _lines(path)

    def discard(self, code: str, runs: Iterable[Run]) -> int:
        """Remove those of some runs that other code made; how many there were."""
        named = {_name(run) for run in runs}
        removed = 0
        for path in (path for entry in self.entries() for path in self._files(entry)):
            with _locked(path):
                entry, lines = path.parent.name, list(_lines(path))
                kept = [
                    line
                    for line in lines
                    if line["code"] == code or _name_of(entry, line) not in named
                ]
                if len(kept) < len(lines):
                    removed += len(lines) - len(kept)
                    write_atomically(path, "".join(map(_text, kept)))
        self._done = None
        return removed

    def _path(self, run: Run) -> Path:
        return self.folder / "runs" / run.entry / f"seed-{run.training_seed}.jsonl"

    def _files(self, entry: str) -> list[Path]:
        return sorted((self.folder / "runs" / entry).glob("*.jsonl"))

    def _failure(self, cell: Run) -> Path:
        where = re.sub(r"[^A-Za-z0-9_.@-]+", "-", cell.cell.label)
        name = f"{cell.entry}__{cell.training_seed}__{where}__trace-{cell.trace:03d}.txt"
        return self.folder / "failures" / name


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # torn by a kill; the run will be done again
        if isinstance(line, dict) and {"key", "seed", "trace", "code"} <= line.keys():
            yield line


def append(path: Path, line: Line) -> None:
    """Add a line to a file; what a killed writer left unfinished before it is closed off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + _text(line).encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file that nobody else writes to or replaces meanwhile."""
    while True:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who waited for the lock may have got that of a file that was replaced since.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _text(line: Line) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"


def _name_of(entry: str, line: Line) -> _Name:
    return entry, line["key"], line["seed"], line["trace"]


def _name(run: Run) -> _Name:
    return run.entry, run.key, run.training_seed, run.trace
