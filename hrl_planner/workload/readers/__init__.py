"""Traces from files: `read_trace` knows a format by looking, or is told.

| format   | file                                                                          |
|----------|-------------------------------------------------------------------------------|
| own      | CSV: arrival_s, isl_tokens, osl_tokens [, label, session_id, block_ids]        |
| azure    | CSV: TIMESTAMP, ContextTokens, GeneratedTokens                                 |
| burstgpt | CSV: Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type |
| mooncake | JSON lines: timestamp, input_length, output_length, hash_ids                   |
| rates    | CSV: time_s, rate_rps, mean_isl, mean_osl; requests are drawn from it          |

All of them may be gzipped. Whatever is wrong with a file ends in a `TraceError` that names the
file, the line, the field and the value.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from hrl_planner.errors import TraceError
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.readers._lines import open_text
from hrl_planner.workload.readers.own import (
    RATE_COLUMNS,
    TRACE_COLUMNS,
    read_own,
    read_rate_curve,
    write_trace,
)
from hrl_planner.workload.readers.public import read_azure, read_burstgpt, read_mooncake
from hrl_planner.workload.trace import Trace

TraceFormat = Literal["own", "azure", "burstgpt", "mooncake", "rates"]
FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)


def read_trace(
    path: str | Path,
    format: str | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    rate: float = 1.0,
    seed: int = 0,
    skip_failed: bool = False,
) -> Trace:
    """Read a trace file, or draw requests from a rate curve.

    Args:
        path: the file.
        format: one of `FORMATS`; None looks at the first line.
        start_s: leave out what comes before; time counts from here.
        end_s: leave out what comes from here on.
        rate: multiplies the number of requests. A rate curve is scaled before requests are drawn.
        seed: for a rate curve, and for `rate` other than 1.
        skip_failed: leave out the failed requests of a BurstGPT trace.

    Raises:
        TraceError: the file cannot be read as such a trace.
    """
    path = Path(path)
    chosen = detect_format(path) if format is None else format
    if chosen not in FORMATS:
        raise TraceError(f"{path.name}: unknown format {chosen!r}; one of {', '.join(FORMATS)}")
    if chosen == "rates":
        curve = read_rate_curve(path)
        if start_s > 0 or end_s is not None:
            curve = curve.slice(start_s, curve.duration_s if end_s is None else end_s)
        return independent_requests(curve.scale(rate=rate), seed=seed, name=path.stem)
    with _whole(path):
        if chosen == "azure":
            trace = read_azure(path)
        elif chosen == "burstgpt":
            trace = read_burstgpt(path, skip_failed=skip_failed)
        elif chosen == "mooncake":
            trace = read_mooncake(path)
        else:
            trace = read_own(path)
    if start_s > 0 or end_s is not None:
        trace = trace.slice(start_s, trace.duration_s if end_s is None else end_s)
    return trace.scale(rate=rate, seed=seed)


def detect_format(path: str | Path) -> TraceFormat:
    """Tell the format of a file by its first line that is not a remark.

    Raises:
        TraceError: it looks like none of them.
    """
    path = Path(path)
    first = ""
    with _whole(path), open_text(path) as file:
        for text in file:
            if text.strip() and not text.startswith("#"):
                first = text.strip()
                break
    if first.startswith("{"):
        return "mooncake"
    header = {cell.strip().strip('"') for cell in first.split(",")}
    signs: dict[TraceFormat, set[str]] = {
        "own": set(TRACE_COLUMNS),
        "azure": {"TIMESTAMP", "ContextTokens"},
        "burstgpt": {"Timestamp", "Request tokens"},
        "rates": set(RATE_COLUMNS),
    }
    for name, columns in signs.items():
        if columns <= header:
            return name
    raise TraceError(
        f"{path.name} line 1: {first[:60]!r} is the start of no known trace format; "
        f"known are {', '.join(FORMATS)}"
    )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what a damaged gzip file raises, each in its own way, into our error."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TraceError(f"{path.name}: damaged gzip file ({error})") from error


__all__ = [
    "FORMATS",
    "TraceFormat",
    "detect_format",
    "read_rate_curve",
    "read_trace",
    "write_trace",
]
