"""Readers of public trace formats: Azure, BurstGPT (CSV) and Mooncake (JSONL)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner.workload.readers._lines import Table, check, open_text, read_table, refuse
from hrl_planner.workload.trace import Trace, dense_ids

MOONCAKE_BLOCK_TOKENS = 512
_MOONCAKE = ("timestamp", "input_length", "output_length")
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")


def read_azure(path: Path) -> Trace:
    """Azure LLM inference traces of 2023 and 2024: wall-clock TIMESTAMP, two token counts."""
    table = read_table(path, _AZURE)
    arrival = _wall_clock(table, "TIMESTAMP")
    isl, osl = table.numbers("ContextTokens"), table.numbers("GeneratedTokens")
    check(path, table.line, arrival, isl, osl, _AZURE)
    return _trace(path, arrival, isl, osl)


def read_burstgpt(path: Path, *, skip_failed: bool = False) -> Trace:
    """BurstGPT: Timestamp in seconds; the model and the log type become the label.

    Args:
        path: the file.
        skip_failed: leave out requests without an answer (0 response tokens), which the trace
            logs as failures; otherwise they are refused like any length of 0.
    """
    table = read_table(path, _BURSTGPT)
    if skip_failed:
        table = table.take(table.numbers("Response tokens") > 0)
    arrival = table.numbers("Timestamp")
    isl, osl = table.numbers("Request tokens"), table.numbers("Response tokens")
    failed = np.flatnonzero(osl == 0)
    if len(failed):
        refuse(
            path,
            int(table.line[failed[0]]),
            "Response tokens",
            "value 0 marks a failed request; skip_failed (--skip-failed) leaves such lines out",
        )
    check(path, table.line, arrival, isl, osl, _BURSTGPT)
    trace = _trace(path, arrival - arrival[0], isl, osl)
    kinds = [table.columns[name] for name in ("Model", "Log Type") if name in table.columns]
    if not kinds:
        return trace
    return trace.with_labels([" ".join(kind) for kind in zip(*kinds, strict=True)])


def read_mooncake(path: Path) -> Trace:
    """Mooncake JSONL: timestamp in ms, two lengths, and hash_ids of 512-token prefix blocks."""
    lines: list[int] = []
    numbers: list[list[float]] = []
    hashes: list[list[int]] = []
    with open_text(path) as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            record = _record(path, number, text)
            numbers.append([float(record[name]) for name in _MOONCAKE])
            hashes.append(_hash_ids(path, number, record))
            lines.append(number)
    line = np.array(lines, dtype=np.int64)
    table = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    arrival, isl, osl = table[:, 0] / 1000.0, table[:, 1], table[:, 2]
    check(path, line, arrival, isl, osl, _MOONCAKE)
    counts = np.array([len(ids) for ids in hashes], dtype=np.int64)
    too_many = counts > np.ceil(isl / MOONCAKE_BLOCK_TOKENS)
    if too_many.any():
        row = int(np.argmax(too_many))
        refuse(
            path,
            lines[row],
            "hash_ids",
            f"{counts[row]} blocks of {MOONCAKE_BLOCK_TOKENS} tokens for a prompt of {isl[row]:g}",
        )
    ids = np.array([block for block_ids in hashes for block in block_ids], dtype=np.int64)
    return Trace(
        name=_stem(path),
        arrival_s=arrival,
        isl_tokens=isl.astype(np.int32),
        osl_tokens=osl.astype(np.int32),
        duration_s=float(arrival[-1]),
        block_ids=dense_ids(ids),
        block_offsets=np.concatenate(([0], np.cumsum(counts))),
        block_tokens=MOONCAKE_BLOCK_TOKENS,
    )


def _record(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        refuse(path, line, "(whole line)", f"malformed JSON: {error.msg} at column {error.colno}")
    if not isinstance(record, dict):
        refuse(path, line, "(whole line)", f"value {text.strip()[:40]} is not a JSON object")
    for name in _MOONCAKE:
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(path, line, name, f"value {value!r} is not a number")
    return record


def _hash_ids(path: Path, line: int, record: dict[str, Any]) -> list[int]:
    ids = record.get("hash_ids", [])
    if not isinstance(ids, list):
        refuse(path, line, "hash_ids", f"value {ids!r} is not a list")
    for value in ids:
        if type(value) is not int or not -(2**63) <= value < 2**63:
            refuse(path, line, "hash_ids", f"value {value!r} is not a 64-bit whole number")
    return ids


def _wall_clock(table: Table, name: str) -> NDArray[np.float64]:
    """Seconds since the first time of a column."""
    cells = table.columns[name]
    # numpy knows no offsets; the traces that have one write UTC.
    plain = [c[:-6] if c.endswith("+00:00") else c.removesuffix("Z") for c in cells]
    try:
        times = np.array(plain, dtype="datetime64[ns]")
    except ValueError:
        for cell, text, line in zip(cells, plain, table.line, strict=True):
            try:
                np.datetime64(text, "ns")
            except ValueError:
                refuse(table.path, int(line), name, f"value {cell!r} is not a date and time")
        raise
    missing = np.isnat(times)
    if missing.any():
        row = int(np.argmax(missing))
        refuse(
            table.path, int(table.line[row]), name, f"value {cells[row]!r} is not a date and time"
        )
    # From the first on: a double holds 1.7e9 s only to a fraction of a microsecond.
    since = (times - times[:1]).astype(np.int64) / 1e9
    seconds: NDArray[np.float64] = since.astype(np.float64)
    return seconds


def _trace(
    path: Path, arrival: NDArray[np.float64], isl: NDArray[np.float64], osl: NDArray[np.float64]
) -> Trace:
    return Trace(
        name=_stem(path),
        arrival_s=arrival,
        isl_tokens=isl.astype(np.int32),
        osl_tokens=osl.astype(np.int32),
        duration_s=float(arrival[-1]),
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
