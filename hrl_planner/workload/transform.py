"""Traces made of other traces: joined, scaled in time or rate, divided into days.

Scaling the rate keeps what makes a trace hard. A conversation is thinned or copied as a whole, so
the gaps between its turns stay, and a copy talks about something else: it gets prefix blocks of its
own, except the blocks so common that they must be a shared system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload._rows import gather
from hrl_planner.workload.trace import Trace, dense_ids

DAY_S = 86_400.0

COPY_SHIFT_S = 30.0
"""A copied conversation starts up to this much earlier or later than the one it copies."""

COMMON_BLOCK_SHARE = 0.01
"""A block in more than this share of the requests is a system prompt: copies share it."""


class Splits(NamedTuple):
    """Three parts of one trace that have no day in common."""

    train: Trace
    validation: Trace
    test: Trace


def merge(traces: Sequence[Trace], name: str | None = None) -> Trace:
    """All requests of several traces played at the same time.

    Labels with the same name become one; sessions and prefix blocks of different traces stay apart.
    """
    return _join(traces, [0.0] * len(traces), max(t.duration_s for t in traces), name)


def concat(traces: Sequence[Trace], name: str | None = None) -> Trace:
    """Several traces played one after another, each for its whole duration."""
    ends = np.cumsum([t.duration_s for t in traces])
    shifts = [0.0, *(float(end) for end in ends[:-1])]
    return _join(traces, shifts, float(ends[-1]), name)


def scale(trace: Trace, *, time: float = 1.0, rate: float = 1.0, seed: int = 0) -> Trace:
    """Stretch time by `time` (2: twice as long, half as busy), then multiply requests by `rate`.

    A `rate` below 1 keeps each conversation with that probability (each request, where the trace
    knows no sessions); above 1, whole copies are added, and a thinned one for the fraction.
    """
    for field, factor in (("time", time), ("rate", rate)):
        if not (np.isfinite(factor) and factor > 0):
            raise TraceError(f"trace {trace.name}: scale factor {field} must be > 0, got {factor}")
    if time != 1.0:
        trace = replace(trace, arrival_s=trace.arrival_s * time, duration_s=trace.duration_s * time)
    if rate == 1.0 or len(trace) == 0:
        return trace
    rng = np.random.default_rng(seed)
    whole, fraction = int(rate), rate - int(rate)
    everyone = np.arange(len(trace), dtype=np.int64)
    copies = [everyone] * whole + ([_thinned(trace, fraction, rng)] if fraction > 0 else [])
    arrivals = [
        trace.arrival_s[index] if number == 0 else _shifted(trace, index, rng)
        for number, index in enumerate(copies)
    ]
    return _copied(trace, copies, arrivals)


def split_days(
    duration_s: float,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    day_s: float = DAY_S,
    name: str = "",
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Bounds in seconds of the train, validation and test days, in this order in time.

    Whole days only, at least one each; a last day that is cut short belongs to the test days.
    """
    days = int(np.ceil(duration_s / day_s - 1e-9))
    if days < 3:
        raise TraceError(
            f"trace {name}: field duration_s: {duration_s} s hold {days} days of {day_s} s, but "
            "train, validation and test need one each; choose a shorter day_s"
        )
    n_test = max(1, round(test * days))
    n_validation = max(1, round(validation * days))
    n_train = days - n_test - n_validation
    if n_train < 1:
        raise TraceError(
            f"trace {name}: validation {validation} and test {test} leave no day to train on"
        )
    first, second = n_train * day_s, (n_train + n_validation) * day_s
    return (0.0, first), (first, second), (second, duration_s)


def split_by_day(
    trace: Trace, *, validation: float = 0.2, test: float = 0.2, day_s: float = DAY_S
) -> Splits:
    """Train, validation and test traces; see `split_days` for who gets which days."""
    bounds = split_days(
        trace.duration_s, validation=validation, test=test, day_s=day_s, name=trace.name
    )
    return Splits(
        *(
            trace.slice(low, high).renamed(f"{trace.name}-{part}")
            for part, (low, high) in zip(Splits._fields, bounds, strict=True)
        )
    )


def _join(
    traces: Sequence[Trace], shifts: Sequence[float], duration_s: float, name: str | None
) -> Trace:
    if not traces:
        raise TraceError("joining traces: field traces: needs at least one, got none")
    sizes = {t.block_tokens for t in traces if len(t.block_ids)}
    if len(sizes) > 1:
        raise TraceError(
            f"joining traces {', '.join(t.name for t in traces)}: field block_tokens differs: "
            f"{sorted(sizes)}"
        )
    labels = tuple(dict.fromkeys(label for t in traces for label in t.labels))
    arrival_s = np.concatenate(
        [t.arrival_s + shift for t, shift in zip(traces, shifts, strict=True)]
    )
    order = np.argsort(arrival_s, kind="stable")
    counts = np.concatenate([np.diff(t.block_offsets) for t in traces])
    starts = np.cumsum(counts) - counts
    counts, starts = counts[order], starts[order]
    # Ids are dense in every part and all are kept: stacked, they are dense again.
    block_ids = _stacked([t.block_ids for t in traces], [t.n_blocks for t in traces])
    session_id = _stacked([t.session_id for t in traces], [_n_sessions(t) for t in traces])
    return traces[0].derived(
        name=name or "+".join(t.name for t in traces),
        arrival_s=arrival_s[order],
        isl_tokens=np.concatenate([t.isl_tokens for t in traces])[order],
        osl_tokens=np.concatenate([t.osl_tokens for t in traces])[order],
        duration_s=duration_s,
        label=np.concatenate([_relabelled(t, labels) for t in traces])[order],
        labels=labels,
        block_ids=gather(block_ids, starts, counts),
        block_offsets=np.concatenate(([0], np.cumsum(counts))),
        block_tokens=sizes.pop() if sizes else traces[0].block_tokens,
        session_id=session_id[order],
    )


def _stacked(columns: Sequence[NDArray[np.int32]], sizes: Sequence[int]) -> NDArray[np.int32]:
    """Join columns of ids so that none meets another's; -1 stays."""
    stacked = np.concatenate(columns)
    at = base = 0
    for column, size in zip(columns, sizes, strict=True):
        part = stacked[at : at + len(column)]
        np.add(part, np.int32(base), out=part, where=part >= 0)
        at, base = at + len(column), base + size
    return stacked


def _copied(
    trace: Trace, copies: Sequence[NDArray[np.int64]], arrivals: Sequence[NDArray[np.float64]]
) -> Trace:
    """Requests `copies` of one trace at times `arrivals`; common blocks stay common to all."""
    arrival_s = np.concatenate(arrivals)
    order = np.argsort(arrival_s, kind="stable")
    index = np.concatenate(copies)[order]
    copy = np.repeat(np.arange(len(copies)), [len(c) for c in copies])[order]
    counts = np.diff(trace.block_offsets)[index]
    ids = gather(trace.block_ids, trace.block_offsets[:-1][index], counts).astype(np.int64)
    uses = np.bincount(trace.block_ids, minlength=trace.n_blocks)
    own = uses[ids] <= max(1.0, COMMON_BLOCK_SHARE * len(trace))
    ids += own * np.repeat(copy, counts) * trace.n_blocks
    session = trace.session_id[index]
    return replace(
        trace,
        arrival_s=arrival_s[order],
        isl_tokens=trace.isl_tokens[index],
        osl_tokens=trace.osl_tokens[index],
        label=trace.label[index],
        session_id=np.where(session >= 0, session + copy * _n_sessions(trace), -1),
        block_ids=dense_ids(ids),
        block_offsets=np.concatenate(([0], np.cumsum(counts))),
    )


def _relabelled(trace: Trace, labels: tuple[str, ...]) -> NDArray[np.int16]:
    index = [labels.index(label) for label in trace.labels] + [-1]
    return np.asarray(index, dtype=np.int16)[trace.label]


def _n_sessions(trace: Trace) -> int:
    return int(trace.session_id.max(initial=-1)) + 1


def _units(trace: Trace) -> NDArray[np.int64]:
    """What is kept, dropped or shifted as one: the session, or the request where there is none."""
    alone = np.arange(len(trace), dtype=np.int64) + _n_sessions(trace)
    return np.where(trace.session_id >= 0, trace.session_id, alone)


def _thinned(trace: Trace, probability: float, rng: np.random.Generator) -> NDArray[np.int64]:
    units = _units(trace)
    keep = rng.random(int(units.max()) + 1) < probability
    return np.flatnonzero(keep[units])


def _shifted(
    trace: Trace, index: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Arrival times of requests `index`, each conversation moved a little, within the trace."""
    units = _units(trace)
    shift = rng.uniform(-COPY_SHIFT_S, COPY_SHIFT_S, size=int(units.max(initial=0)) + 1)
    moved = np.abs(trace.arrival_s + shift[units])
    beyond = moved > trace.duration_s
    moved[beyond] = np.maximum(0.0, 2 * trace.duration_s - moved[beyond])
    return moved[index]
