"""What a load run amounts to: numbers for the whole and by class, and what to doubt about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner.load.result import REJECTED_STATUS, ClientHealth, LoadResult
from hrl_planner.outcomes import percentile, ratio, request_metrics

ALL_CLASSES = "all"

_TOLERATED_DELAY_MS = 10.0  # of the client, p99; a Python process on a busy machine has some
_TOLERATED_SHARE_OF_TTFT = 0.05
_TOLERATED_CPU = 0.9
_TOLERATED_SHORT_SHARE = 0.01


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    Attributes:
        rows: for the whole run (class "all") and per class: offered, attainment, goodput and
            percentiles as `hrl_planner.outcomes` defines them; `rejected` (429 or 503), `failed`
            (in any other way), `unfinished`, `prefix_hit_rate`, `stall_p99_ms` (99th percentile of
            a request's longest gap between tokens), `requests_rps` (finished) and `tokens_per_s`.
        outcomes: requests by status, and by kind of error where there was no whole answer.
        errors: per kind of error, what it said the first time.
        workers: requests per worker, where headers told.
        interrupted: requests that stopping the run cut off; they count nowhere.
        duration_s: over which requests were sent.
        wall_s: real seconds.
        client: whether the client was in the way.
        warnings: sentences for people.
    """

    rows: tuple[Mapping[str, float | str], ...]
    outcomes: Mapping[str, int]
    errors: Mapping[str, str]
    workers: Mapping[str, int]
    interrupted: int
    duration_s: float
    wall_s: float
    client: ClientHealth
    warnings: tuple[str, ...]

    @property
    def total(self) -> Mapping[str, float | str]:
        """The row of the whole run."""
        return self.rows[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data that JSON can hold: null for what is not known or never happened."""
        data = asdict(self)
        for row in data["rows"]:
            for name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    row[name] = None
        return data


def summarise(result: LoadResult) -> Summary:
    """Compute every number of a run."""
    counted = result.counted
    rows: list[dict[str, float | str]] = [{"class": ALL_CLASSES, **_row(result, counted)}]
    if len(result.classes) > 1:
        rows += [
            {"class": slo.name, **_row(result, counted & (result.class_id == index))}
            for index, slo in enumerate(result.classes)
        ]
    kinds = [
        str(status) if error in ("", "http") else str(error)
        for status, error in zip(result.status, result.error, strict=True)
    ]
    errors: dict[str, str] = {}
    for kind, detail in zip(kinds, result.detail, strict=True):
        if detail:
            errors.setdefault(kind, detail)
    return Summary(
        rows=tuple(rows),
        outcomes=dict(Counter(kinds).most_common()),
        errors=errors,
        workers=dict(Counter(worker for worker in result.worker if worker).most_common()),
        interrupted=int((~counted).sum()),
        duration_s=result.duration_s,
        wall_s=result.wall_s,
        client=result.client,
        warnings=tuple(_warnings(result)),
    )


def _row(result: LoadResult, members: NDArray[np.bool_]) -> dict[str, float]:
    finished = result.finished[members]
    rejected = np.isin(result.status[members], REJECTED_STATUS)
    unfinished = result.error[members] == "unfinished"
    began = members & ~np.isnan(result.first_token_s)
    last_s = result.end_s[members].max(initial=0.0)
    return request_metrics(result.outcomes.of(members), result.duration_s) | {
        "rejected": float(rejected.sum()),
        "failed": float((~finished & ~rejected & ~unfinished).sum()),
        "unfinished": float(unfinished.sum()),
        "prefix_hit_rate": ratio(result.cached_tokens[began].sum(), result.isl_tokens[began].sum()),
        "stall_p99_ms": percentile(1e3 * result.max_itl_s[began], 0.99),
        # Until the last answer's end: work done after the last request was sent took time, too.
        "requests_rps": ratio(finished.sum(), max(last_s, result.duration_s)),
        "tokens_per_s": ratio(result.tokens[members].sum(), max(last_s, result.duration_s)),
    }


def _warnings(result: LoadResult) -> list[str]:
    found = []
    client = result.client
    tightest_ms = min((c.ttft_ms for c in result.classes), default=math.inf)
    tolerated_ms = max(
        _TOLERATED_DELAY_MS,
        _TOLERATED_SHARE_OF_TTFT * tightest_ms if math.isfinite(tightest_ms) else 0.0,
    )
    if client.cpu_share > _TOLERATED_CPU:
        found.append(
            f"the client used {client.cpu_share:.0%} of a core and was itself the bottleneck: "
            "latencies include its own delay, and throughput is no more than a lower bound"
        )
    elif max(client.lag_ms, client.stall_ms) > tolerated_ms:
        found.append(
            f"the client was late by itself (p99: {client.lag_ms:.0f} ms with sending, "
            f"{client.stall_ms:.0f} ms with reading): the machine had no core free for it, and "
            "latencies include that delay"
        )
    finished = result.finished
    short = finished & (result.tokens < result.osl_tokens)
    if short.sum() > _TOLERATED_SHORT_SHARE * finished.sum():
        found.append(
            f"{short.sum():,} of {finished.sum():,} answers are shorter than asked for: the "
            "server honours neither ignore_eos nor max_tokens, or counts no usage"
        )
    if result.interrupted:
        found.append(
            f"the run was stopped after {result.wall_s:.0f} s; "
            f"{(~result.counted).sum():,} requests on their way are not counted"
        )
    return found
