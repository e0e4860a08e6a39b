"""What all text readers share: rows with their line numbers, and errors that name them.

Columns are parsed whole, by numpy; only when that fails, or when a check finds a bad value, is the
line looked for that is to blame. Good files of a million lines are read in seconds this way, and
bad ones still get an exact message.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload.trace import find_problem


def refuse(path: Path, line: int, field: str, why: str) -> NoReturn:
    """Raise the one error of all readers."""
    raise TraceError(f"{path.name} line {line} field {field}: {why}")


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file as text.

    Attributes:
        path: the file.
        columns: text per column name.
        line: line number of each row.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    line: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.line)

    def numbers(self, name: str, unless: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """A column of numbers; empty and NaN cells are refused.

        Args:
            name: of the column.
            unless: rows in which NaN is allowed.
        """
        text = self.columns[name]
        try:
            values = np.array(text, dtype=np.float64)
        except ValueError:
            for cell, line in zip(text, self.line, strict=True):
                _number(self.path, int(line), name, cell)
            raise  # numpy and float() disagree: should not happen, and must not pass silently
        bad = ~np.isfinite(values)
        if unless is not None:
            bad &= ~(unless & np.isnan(values))
        if bad.any():
            row = int(np.argmax(bad))
            refuse(
                self.path, int(self.line[row]), name, f"value {text[row]} is not a finite number"
            )
        return values

    def take(self, rows: NDArray[np.bool_]) -> Table:
        """Only some rows."""
        index = np.flatnonzero(rows)
        columns = {name: tuple(text[i] for i in index) for name, text in self.columns.items()}
        return Table(self.path, columns, self.line[index])


def read_table(path: Path, required: Sequence[str], skip_lines: int = 0) -> Table:
    """Read a CSV file with a header line that names at least the required columns.

    Args:
        path: the file.
        required: column names; more may be there.
        skip_lines: lines before the header.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    with open_text(path) as file:
        for _ in range(skip_lines):
            next(file, None)
        reader = csv.reader(file, strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            for name in required:
                if name not in header:
                    refuse(
                        path,
                        skip_lines + 1,
                        name,
                        f"column is missing; the header is {','.join(header) or 'empty'}",
                    )
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue  # a blank line says nothing wrong
                    refuse(
                        path,
                        reader.line_num + skip_lines,
                        header[min(len(row), len(header) - 1)],
                        f"{len(row)} cells where the header has {len(header)}",
                    )
                rows.append(row)
                lines.append(reader.line_num + skip_lines)
        except csv.Error as error:
            refuse(path, reader.line_num + skip_lines, "(whole line)", f"malformed CSV: {error}")
    cells = list(zip(*rows, strict=True)) if rows else [() for _ in header]
    return Table(path, dict(zip(header, cells, strict=True)), np.array(lines, dtype=np.int64))


def open_text(path: Path) -> TextIO:
    """Open a text file, plain or gzipped, with any byte order mark removed.

    Bytes that are no text become replacement characters: what reads the cell refuses them, and
    knows the line.
    """
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    if path.suffix == ".gz":
        return cast(
            TextIO, gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        )
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def check(
    path: Path,
    line: NDArray[np.int64],
    arrival: NDArray[np.float64],
    isl: NDArray[np.float64],
    osl: NDArray[np.float64],
    names: tuple[str, str, str],
) -> None:
    """Refuse the first row that cannot be a request, in the words of the file.

    Args:
        path: the file.
        line: line number of each row.
        arrival: arrival in seconds.
        isl: prompt tokens.
        osl: output tokens.
        names: what the file calls these three columns.
    """
    if len(line) == 0:
        raise TraceError(f"{path.name}: no requests in it")
    problem = find_problem(arrival, isl, osl)
    if problem is not None:
        field = dict(zip(("arrival_s", "isl_tokens", "osl_tokens"), names, strict=True))
        refuse(
            path,
            int(line[problem.index]),
            field[problem.field],
            f"value {problem.value:.15g} {problem.why}",
        )


def _number(path: Path, line: int, field: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        refuse(path, line, field, f"value {cell!r} is not a number")
