"""How answers ended: one entry of Envoy's access log against what was promised and foreseen.

Envoy times each answer: first body byte (the first token of a streamed answer), last byte, bytes
and attempts. A request's mean ITL is the time between first and last byte over the tokens behind
the first; tokens are estimated from bytes (`osl`). An answer that is not streamed shows no first
token; it counts as in time when its whole took no longer than both targets together allow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hrl_planner.router.envoy import names
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.request import Call, Refusal
from hrl_planner.router.service import Flight, Router

log = logging.getLogger("hrl_planner.router.requests")
own_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the access log says of one answer.

    Attributes:
        status: HTTP status the client got, 0 when it got none.
        broken: the worker's connection ended before the answer did.
        cancelled: the client left.
        first_s: request's first byte to the answer's first body byte; None without one.
        last_s: ... to its last byte.
        body_bytes: of the answer.
        attempts: workers tried.
    """

    status: int
    broken: bool
    cancelled: bool
    first_s: float | None
    last_s: float
    body_bytes: int
    attempts: int


def read_entry(entry: Any) -> tuple[int, Answer] | None:
    """Return flight number and answer of an HTTPAccessLogEntry; None if it was never routed."""
    common = entry.common_properties
    metadata = common.metadata.filter_metadata
    if names.METADATA not in metadata:
        return None
    number = metadata[names.METADATA].fields[names.FLIGHT].string_value
    if not number:
        return None
    tags = common.custom_tags
    flags = common.response_flags
    first = _seconds(tags.get(names.FIRST_BYTE_US, ""))
    return int(number), Answer(
        entry.response.response_code.value,
        flags.upstream_connection_termination
        or flags.upstream_remote_reset
        or flags.upstream_connection_failure
        or flags.stream_idle_timeout
        or flags.upstream_request_timeout,
        flags.downstream_connection_termination or flags.downstream_remote_reset,
        first,
        _seconds(tags.get(names.LAST_BYTE_US, "")) or common.duration.ToMicroseconds() * 1e-6,
        entry.response.response_body_bytes,
        max(1, common.upstream_request_attempt_count),
    )


class Outcomes:
    """Books ended answers: metrics, lengths, worker health, one log line each."""

    def __init__(self, router: Router, metrics: RouterMetrics, *, log_requests: bool) -> None:
        self._router = router
        self._metrics = metrics
        self._log_requests = log_requests

    def refused(self, call: Call, refusal: Refusal) -> None:
        """Book a request that was not routed."""
        self._metrics.refused(refusal)
        if self._log_requests:
            log.info(
                "refused",
                extra={
                    "request_id": call.request_id,
                    "status": refusal.status,
                    "reason": refusal.reason,
                },
            )

    def ended(self, entries: Iterable[Any]) -> None:
        """Book ended answers, HTTPAccessLogEntry messages."""
        before = self._router.under_way
        for entry in entries:
            try:
                self._end(entry)
            except Exception:  # whatever it is, the other entries are not to blame
                own_log.exception("an entry of the access log was not booked")
        if self._router.under_way < before:
            self._router.look()

    def _end(self, entry: Any) -> None:
        read = read_entry(entry)
        flight = self._router.ended(read[0]) if read is not None else None
        if read is not None and flight is not None:
            self._book(flight, read[1])

    def _book(self, flight: Flight, answer: Answer) -> None:
        class_id = flight.ask.targets.class_id
        place = flight.leg.place
        tokens = self._tokens(flight, answer)
        ttft_s, itl_s = _latencies(flight, answer, tokens)
        outcome = _outcome(flight, answer, tokens, ttft_s, itl_s)
        self._metrics.outcome(class_id, outcome)
        if outcome in ("attained", "late_ttft", "late_itl"):
            self._metrics.answered(class_id, tokens)
        if answer.attempts > 1:
            self._metrics.retried(place.worker.pool)
            self._router.failed(flight)
        elif outcome == "failed":
            self._router.failed(flight)
        else:
            self._router.served(flight)
        if ttft_s is not None:
            self._metrics.observed_ttft(
                place.worker.pool, class_id, ttft_s, flight.predicted_ttft_s
            )
        if itl_s is not None:
            self._metrics.observed_itl(place.worker.pool, class_id, itl_s, flight.predicted_itl_s)
        if self._log_requests:
            _write(flight, answer, outcome, ttft_s, itl_s, tokens)

    def _tokens(self, flight: Flight, answer: Answer) -> int:
        """Estimate an answer's tokens, and learn from it."""
        lengths, class_id = self._router.lengths, flight.ask.targets.class_id
        if not flight.wish.stream:
            lengths.saw_whole_answer(class_id)
            return lengths.expected(class_id, flight.wish.max_tokens)
        tokens = lengths.of_answer(answer.body_bytes, flight.wish.max_tokens)
        if answer.status == 200 and not answer.broken and not answer.cancelled:
            lengths.saw_answer(class_id, answer.body_bytes, tokens)
        return tokens


def _latencies(flight: Flight, answer: Answer, tokens: int) -> tuple[float | None, float | None]:
    """Return observed TTFT and mean ITL, None for what cannot be seen."""
    if answer.status != 200 or not flight.wish.stream or answer.first_s is None:
        return None, None
    if tokens < 2 or answer.broken or answer.cancelled:
        return answer.first_s, None
    return answer.first_s, max(0.0, answer.last_s - answer.first_s) / (tokens - 1)


def _outcome(
    flight: Flight, answer: Answer, tokens: int, ttft_s: float | None, itl_s: float | None
) -> str:
    targets = flight.ask.targets
    if answer.cancelled:
        return "cancelled"
    if 400 <= answer.status < 500:
        return "refused"  # by the engine: the request itself is at fault
    if answer.status != 200 or answer.broken:
        return "failed"
    if ttft_s is None:
        allowed_s = targets.ttft_s + targets.itl_s * (tokens - 1)
        return "attained" if answer.last_s <= allowed_s else "late_itl"
    if ttft_s > targets.ttft_s:
        return "late_ttft"
    return "late_itl" if itl_s is not None and itl_s > targets.itl_s else "attained"


def _write(
    flight: Flight,
    answer: Answer,
    outcome: str,
    ttft_s: float | None,
    itl_s: float | None,
    tokens: int,
) -> None:
    log.info(
        "answered",
        extra={
            "request_id": flight.call.request_id,
            "trace": flight.call.trace,
            "class_id": flight.ask.targets.class_id,
            "worker": flight.leg.place.worker.name,
            "pool": flight.leg.place.worker.pool,
            "isl_tokens": flight.ask.isl_tokens,
            "osl_tokens": tokens,
            "predicted_ttft_ms": round(flight.predicted_ttft_s * 1e3, 2),
            "ttft_ms": None if ttft_s is None else round(ttft_s * 1e3, 2),
            "itl_ms": None if itl_s is None else round(itl_s * 1e3, 3),
            "status": answer.status,
            "attempts": answer.attempts,
            "outcome": outcome,
        },
    )


def _seconds(microseconds: str) -> float | None:
    """Return a duration tag in seconds; Envoy writes '-' where a moment never came."""
    return int(microseconds) * 1e-6 if microseconds.isdigit() else None
