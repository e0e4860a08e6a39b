"""What a load run measured: a row per request, in columns.

Times of a request count from when it was *due*, not from when the client came to send it: a client
that falls behind must not make the server look good (coordinated omission). In a closed loop a
request is due when it is sent. All times are seconds since the run began, multiplied
by `engine_speed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner.load.connection import Exchange
from hrl_planner.load.meter import cached_tokens
from hrl_planner.load.options import LoadOptions, Target
from hrl_planner.load.prompts import Offered, SloTarget
from hrl_planner.outcomes import Outcomes

Floats = NDArray[np.float64]

REJECTED_STATUS = (429, 503)

COLUMNS = (
    "due_s", "sent_s", "class", "isl_tokens", "osl_tokens", "status", "error", "detail",
    "first_token_s", "last_token_s", "ttft_ms", "itl_ms", "max_itl_ms", "tokens", "cached_tokens",
    "retry_after_s", "attained", "worker", "request_id",
)  # fmt: skip


@dataclass(frozen=True)
class ClientHealth:
    """Whether the client itself was in the way.

    Attributes:
        lag_ms: 99th percentile of how late requests were sent.
        stall_ms: 99th percentile of how late the client's event loop was with what was due.
        cpu_share: processor time of the client over the run's time, 1 is one core.
    """

    lag_ms: float
    stall_ms: float
    cpu_share: float


@dataclass(frozen=True, eq=False)
class LoadResult:
    """N requests that were due while the run lasted, in the order they were due.

    Attributes:
        classes: the promises.
        class_id: int16 (N,), index in `classes`.
        isl_tokens: int32 (N,), as asked for.
        osl_tokens: int32 (N,), as asked for.
        due_s: (N,).
        sent_s: (N,).
        first_token_s: (N,), NaN where no token came.
        last_token_s: (N,), NaN where no token came.
        end_s: (N,), when it ended, in whatever way.
        tokens: int32 (N,), as they came.
        max_itl_s: (N,), longest time between two tokens.
        cached_tokens: int32 (N,), as the server says.
        retry_after_s: (N,), NaN where the server said nothing.
        status: int16 (N,), 0 without an answer.
        error: (N,) of `ErrorKind`.
        detail: the error in words, per request.
        worker: who served it, where a header said so, per request.
        request_id: the server's, per request.
        duration_s: over which requests were sent: of the trace, or of the closed loop.
        wall_s: from the first request to the end of the last, real seconds.
        interrupted: whether the run was stopped.
        client: whether the client was in the way.
    """

    classes: tuple[SloTarget, ...]
    class_id: NDArray[np.int16]
    isl_tokens: NDArray[np.int32]
    osl_tokens: NDArray[np.int32]
    due_s: Floats
    sent_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    end_s: Floats
    tokens: NDArray[np.int32]
    max_itl_s: Floats
    cached_tokens: NDArray[np.int32]
    retry_after_s: Floats
    status: NDArray[np.int16]
    error: NDArray[np.str_]
    detail: tuple[str, ...]
    worker: tuple[str, ...]
    request_id: tuple[str, ...]
    duration_s: float
    wall_s: float
    interrupted: bool
    client: ClientHealth

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.due_s)

    @cached_property
    def ttft_s(self) -> Floats:
        """From due to first token, NaN where there was none, shape (N,)."""
        return self.first_token_s - self.due_s

    @cached_property
    def finished(self) -> NDArray[np.bool_]:
        """Whether the whole answer came, shape (N,)."""
        return np.asarray(self.error == "")

    @cached_property
    def itl_s(self) -> Floats:
        """Mean inter-token latency, 0 for a single token, NaN if unfinished, shape (N,)."""
        steps = np.maximum(self.tokens - 1, 1)
        itl = (self.last_token_s - self.first_token_s) / steps
        return np.where(self.finished, itl, np.nan)

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Which requests were offered: all but those that stopping the run cut off, shape (N,)."""
        return np.asarray(self.error != "interrupted")

    @cached_property
    def outcomes(self) -> Outcomes:
        """All requests as they are judged, in ms."""
        ttft, itl = 1e3 * self.ttft_s, 1e3 * self.itl_s
        ttft_target = np.array([c.ttft_ms for c in self.classes])[self.class_id]
        itl_target = np.array([c.itl_ms for c in self.classes])[self.class_id]
        # A comparison with NaN is False: what never happened is a miss.
        attained = self.finished & (ttft <= ttft_target) & (itl <= itl_target)
        return Outcomes(ttft, itl, ttft_target, itl_target, attained)

    def columns(self) -> dict[str, Any]:
        """One column per name in `COLUMNS`, for a table on disk."""
        names = np.array([c.name for c in self.classes])
        outcomes = self.outcomes
        made = {
            "class": names[self.class_id],
            "ttft_ms": outcomes.ttft_ms,
            "itl_ms": outcomes.itl_ms,
            "max_itl_ms": 1e3 * self.max_itl_s,
            "attained": outcomes.attained,
        }
        return {name: made[name] if name in made else getattr(self, name) for name in COLUMNS}

    def write_jsonl(self, path: Path) -> None:
        """Write one JSON object per request; NaN becomes null."""
        columns = {
            name: column.tolist() if isinstance(column, np.ndarray) else column
            for name, column in self.columns().items()
        }
        with path.open("w", encoding="utf-8") as file:
            for values in zip(*columns.values(), strict=True):
                # NaN is the one value that differs from itself.
                row = {k: v if v == v else None for k, v in zip(columns, values, strict=True)}
                file.write(json.dumps(row) + "\n")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was due: which of the trace's, when, and what came of it."""

    row: int
    due_s: float
    exchange: Exchange


def collect(
    sent: Iterable[Sent], offered: Offered, target: Target, options: LoadOptions, start_s: float,
    **of_the_run: Any,
) -> LoadResult:  # fmt: skip
    """Make columns of what was sent.

    Args:
        sent: in the order due; every exchange has ended.
        offered: what `Sent.row` counts in.
        target: names the headers of workers.
        options: how times are scaled.
        start_s: the monotonic time at which the run began.
        of_the_run: the fields of `LoadResult` that are not columns.
    """
    rows = [_row(request, target) for request in sent]
    table = {name: [row[name] for row in rows] for name in _ROW_TYPES}
    arrays: dict[str, Any] = {
        name: np.array(values, dtype=_ROW_TYPES[name]) for name, values in table.items()
    }
    for name in ("due_s", "sent_s", "first_token_s", "last_token_s", "end_s"):
        arrays[name] = (arrays[name] - start_s) * options.engine_speed
    arrays["max_itl_s"] *= options.engine_speed
    taken = np.array([request.row for request in sent], dtype=np.int64)
    return LoadResult(
        classes=offered.classes,
        class_id=offered.class_id[taken],
        isl_tokens=offered.trace.isl_tokens[taken],
        osl_tokens=offered.trace.osl_tokens[taken],
        detail=tuple(row["detail"] for row in rows),
        worker=tuple(row["worker"] for row in rows),
        request_id=tuple(row["request_id"] for row in rows),
        **arrays,
        **of_the_run,
    )


_ROW_TYPES: dict[str, Any] = {
    "due_s": np.float64,
    "sent_s": np.float64,
    "first_token_s": np.float64,
    "last_token_s": np.float64,
    "end_s": np.float64,
    "tokens": np.int32,
    "max_itl_s": np.float64,
    "cached_tokens": np.int32,
    "retry_after_s": np.float64,
    "status": np.int16,
    "error": np.str_,
}


def _row(request: Sent, target: Target) -> dict[str, Any]:
    exchange = request.exchange
    head, meter = exchange.head, exchange.meter
    headers = head.headers if head is not None else {}
    came = meter is not None and meter.first_s is not None
    return {
        "due_s": request.due_s,
        "sent_s": exchange.sent_s,
        "first_token_s": meter.first_s if came and meter is not None else np.nan,
        "last_token_s": meter.last_s if came and meter is not None else np.nan,
        "end_s": exchange.end_s,
        "tokens": meter.tokens if meter is not None else 0,
        "max_itl_s": meter.max_gap_s if meter is not None else 0.0,
        "cached_tokens": cached_tokens(meter.usage) if meter is not None else 0,
        "retry_after_s": _seconds(headers.get("retry-after", "")),
        "status": head.status if head is not None else 0,
        "error": exchange.error,
        "detail": exchange.detail,
        "worker": next((headers[h] for h in target.worker_headers if h in headers), ""),
        "request_id": headers.get("x-request-id", ""),
    }


def _seconds(text: str) -> float:
    """Retry-After in seconds; a date, which the header allows as well, counts as not said."""
    return float(text) if text.isascii() and text.isdigit() else float("nan")
