"""Flaps: a pool scaled one way and back again, because of a fault and for nothing else.

A fault of planners or API server is *judged* if demand had not changed, and nobody had put a hand
on the cluster, for a while before it and until it was over; for then a planner that sees what there
is has no reason to change anything twice. Over is a fault two local intervals after everybody
was back. Within that time, beginning two intervals before the fault, a change of a pool's target
in the other direction than the one before it is a flap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.cluster.observer import Scaling


@dataclass(frozen=True, slots=True)
class Span:
    """A time with a name, seconds since the epoch."""

    kind: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Flap:
    """A change that undid the one before it."""

    fault: Span
    first: Scaling
    second: Scaling


def judged(faults: Sequence[Span], disturbances: Sequence[Span], local_s: float) -> list[Span]:
    """Return faults with what follows them, where nothing else disturbed."""
    found = []
    for fault in faults:
        span = Span(fault.kind, fault.from_s - 2.0 * local_s, fault.to_s + 2.0 * local_s)
        if not any(d.from_s < span.to_s and span.from_s < d.to_s for d in disturbances):
            found.append(span)
    return found


def flaps(spans: Sequence[Span], scalings: Sequence[Scaling]) -> list[Flap]:
    """Return the flaps within judged spans."""
    found = []
    for span in spans:
        inside = [s for s in scalings if span.from_s <= s.at_s <= span.to_s]
        for pool in {s.pool for s in inside}:
            own = [s for s in inside if s.pool == pool]
            for first, second in pairwise(own):
                if (first.after > first.before) != (second.after > second.before):
                    found.append(Flap(span, first, second))
    return found
