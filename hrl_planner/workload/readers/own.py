"""Our own formats: the trace CSV (read and written) and the rate-curve CSV.

A trace file is a CSV with the columns arrival_s, isl_tokens, osl_tokens and optionally label,
session_id and block_ids (separated by spaces). Lines before the header that start with ``#`` carry
what a table cannot: ``# duration_s=3600``, ``# block_tokens=512``. docs/workload.md has an example.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.readers._lines import Table, check, open_text, read_table, refuse
from hrl_planner.workload.trace import DEFAULT_BLOCK_TOKENS, Trace, dense_ids

TRACE_COLUMNS = ("arrival_s", "isl_tokens", "osl_tokens")
RATE_COLUMNS = ("time_s", "rate_rps", "mean_isl", "mean_osl")
_SETTINGS = ("duration_s", "block_tokens")


def read_own(path: Path) -> Trace:
    """Read a trace CSV of our own."""
    settings, lines = _settings(path)
    table = read_table(path, TRACE_COLUMNS, skip_lines=lines)
    arrival, isl, osl = (table.numbers(name) for name in TRACE_COLUMNS)
    check(path, table.line, arrival, isl, osl, TRACE_COLUMNS)
    sessions = np.full(len(table), -1, dtype=np.int32)
    if "session_id" in table.columns:
        numbers = table.numbers("session_id")
        bad = (numbers < -1) | (numbers > np.iinfo(np.int32).max) | (numbers % 1 != 0)
        if bad.any():
            row = int(np.argmax(bad))
            refuse(path, int(table.line[row]), "session_id", f"value {numbers[row]:g} is no id")
        sessions = numbers.astype(np.int32)
    block_tokens = int(settings.get("block_tokens", DEFAULT_BLOCK_TOKENS))
    ids, counts = _blocks(table, isl, block_tokens)
    trace = Trace(
        name=path.name.removesuffix(".gz").rsplit(".", 1)[0],
        arrival_s=arrival,
        isl_tokens=isl.astype(np.int32),
        osl_tokens=osl.astype(np.int32),
        duration_s=settings.get("duration_s", float(arrival[-1])),
        session_id=sessions,
        block_ids=ids,
        block_offsets=np.concatenate(([0], np.cumsum(counts))),
        block_tokens=block_tokens,
    )
    return _labelled(trace, table) if "label" in table.columns else trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as CSV of our own; a path that ends in .gz is compressed.

    Columns that hold nothing are left out. Reading it again gives the same requests.
    """
    names = np.array([*trace.labels, ""])
    columns: dict[str, list[str]] = {
        "arrival_s": [repr(float(t)) for t in trace.arrival_s],
        "isl_tokens": [str(n) for n in trace.isl_tokens],
        "osl_tokens": [str(n) for n in trace.osl_tokens],
    }
    if trace.labels:
        columns["label"] = names[trace.label].tolist()
    if (trace.session_id >= 0).any():
        columns["session_id"] = [str(n) for n in trace.session_id]
    if len(trace.block_ids):
        text = trace.block_ids.astype(np.str_)
        bounds = trace.block_offsets.tolist()
        columns["block_ids"] = [" ".join(text[low:high]) for low, high in pairwise(bounds)]
    buffer = io.StringIO()
    buffer.write(f"# duration_s={trace.duration_s!r}\n# block_tokens={trace.block_tokens}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    data = buffer.getvalue().encode()
    target = Path(path)
    target.write_bytes(gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)


def read_rate_curve(path: str | Path) -> RateCurve:
    """Read a rate curve; each line holds from its time to the next one's.

    The last line lasts as long as the one before it.
    """
    path = Path(path)
    _, lines = _settings(path)
    table = read_table(path, RATE_COLUMNS, skip_lines=lines)
    rate = table.numbers("rate_rps")
    # Where nothing arrives, mean lengths mean nothing: NaN and 0 are fine there.
    idle = rate == 0
    columns = {
        "time_s": table.numbers("time_s"),
        "rate_rps": rate,
        "mean_isl": np.where(idle, 1.0, table.numbers("mean_isl", unless=idle)),
        "mean_osl": np.where(idle, 1.0, table.numbers("mean_osl", unless=idle)),
    }
    if len(table) < 2:
        raise TraceError(f"{path.name} field time_s: a rate curve needs at least two lines")
    rules = (
        ("time_s", np.diff(columns["time_s"], prepend=-np.inf) <= 0, "does not increase"),
        ("rate_rps", rate < 0, "is negative"),
        ("mean_isl", columns["mean_isl"] < 1, "is below 1"),
        ("mean_osl", columns["mean_osl"] < 1, "is below 1"),
    )
    for field, bad, why in rules:
        if bad.any():
            row = int(np.argmax(bad))
            refuse(path, int(table.line[row]), field, f"value {columns[field][row]:g} {why}")
    time = columns["time_s"] - columns["time_s"][0]
    return RateCurve(
        path.stem,
        np.concatenate((time, [2 * time[-1] - time[-2]])),
        rate,
        columns["mean_isl"],
        columns["mean_osl"],
    )


def _settings(path: Path) -> tuple[dict[str, float], int]:
    """The ``# key=value`` lines at the top, and how many there are."""
    found: dict[str, float] = {}
    lines = 0
    with open_text(path) as file:
        for text in file:
            if not text.startswith("#"):
                break
            lines += 1
            key, equals, value = text[1:].strip().partition("=")
            if key.strip() not in _SETTINGS or not equals:
                continue  # a remark
            try:
                number = float(value)
            except ValueError:
                refuse(path, lines, key.strip(), f"value {value!r} is not a number")
            if not (np.isfinite(number) and number > 0):
                refuse(path, lines, key.strip(), f"value {value} is not above 0")
            found[key.strip()] = number
    return found, lines


def _blocks(
    table: Table, isl: NDArray[np.float64], block_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Dense block ids of all rows and their number per row."""
    if "block_ids" not in table.columns:
        return np.empty(0, dtype=np.int32), np.zeros(len(table), dtype=np.int64)
    words = [cell.split() for cell in table.columns["block_ids"]]
    counts = np.array([len(w) for w in words], dtype=np.int64)
    try:
        ids = np.array([word for row in words for word in row], dtype=np.str_).astype(np.int64)
    except (ValueError, OverflowError):
        for row, line in zip(words, table.line, strict=True):
            for word in row:
                if not word.lstrip("-").isdigit() or abs(int(word)) >= 2**63:
                    refuse(table.path, int(line), "block_ids", f"value {word!r} is not a number")
        raise
    too_many = counts > np.ceil(isl / block_tokens)
    if too_many.any():
        at = int(np.argmax(too_many))
        refuse(
            table.path,
            int(table.line[at]),
            "block_ids",
            f"{counts[at]} blocks of {block_tokens} tokens for a prompt of {isl[at]:g}",
        )
    return dense_ids(ids), counts


def _labelled(trace: Trace, table: Table) -> Trace:
    """Labels of the file; an empty cell means unknown."""
    labelled = trace.with_labels(table.columns["label"])
    if "" not in labelled.labels:
        return labelled
    empty = labelled.labels.index("")
    label = np.where(labelled.label == empty, -1, labelled.label - (labelled.label > empty))
    return replace(labelled, label=label, labels=tuple(n for n in labelled.labels if n))
