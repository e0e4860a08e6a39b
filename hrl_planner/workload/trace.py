"""The trace: which requests arrive when, how long they are, and which prefixes they share.

A `Trace` is columns of numpy arrays, checked once when it is made, so that everything after it
(class assignment, the simulator, statistics) may trust them. Readers and generators produce traces;
the operations here cut, scale and join them and never change one in place.

Prefixes are told in blocks, as Mooncake's ``hash_ids`` do: a request carries the ids of its
prompt's blocks in order, and an id stands for the *whole* prefix up to and including that block.
Two requests share a prefix as far as their leading ids agree. Ids are dense (0 to n_blocks - 1), so
a cache is an array and never a hash table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload._rows import gather

MAX_TOKENS = 1_048_576
"""Longest prompt or answer accepted: longer is a broken file, not a request."""

DEFAULT_BLOCK_TOKENS = 512
"""Tokens per prefix block where a trace brings none of its own (Mooncake's size)."""

MAX_LABELS = np.iinfo(np.int16).max
"""Most kinds of request one trace can tell apart (the column is int16)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing wrong with a set of columns: enough for a message that helps."""

    field: str
    index: int
    value: float
    why: str


def find_problem(
    arrival_s: NDArray[np.float64],
    isl_tokens: NDArray[np.int64] | NDArray[np.float64] | NDArray[np.int32],
    osl_tokens: NDArray[np.int64] | NDArray[np.float64] | NDArray[np.int32],
) -> Problem | None:
    """The earliest request whose arrival or lengths cannot be, or None.

    Readers call it on what they parsed to name a line; `Trace` calls it to name a request.
    """
    found: list[Problem] = []

    def note(bad: NDArray[np.bool_], name: str, values: NDArray[Any], why: str) -> None:
        if bad.any():
            index = int(np.argmax(bad))
            found.append(Problem(name, index, float(values[index]), why))

    note(~np.isfinite(arrival_s), "arrival_s", arrival_s, "is not a finite number")
    note(arrival_s < 0, "arrival_s", arrival_s, "is negative")
    later = np.zeros(len(arrival_s), dtype=np.bool_)
    later[1:] = arrival_s[1:] < arrival_s[:-1]
    note(later, "arrival_s", arrival_s, "is before the request above it (arrivals must be sorted)")
    for name, tokens in (("isl_tokens", isl_tokens), ("osl_tokens", osl_tokens)):
        if tokens.dtype.kind == "f":
            note(~np.isfinite(tokens), name, tokens, "is not a finite number")
            note(tokens != np.rint(tokens), name, tokens, "is not a whole number")
        note(tokens < 1, name, tokens, "is below 1")
        note(tokens > MAX_TOKENS, name, tokens, f"is above {MAX_TOKENS}")
    return min(found, key=lambda problem: problem.index) if found else None


def _no_blocks() -> NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


def _empty_int64() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


def _empty_int16() -> NDArray[np.int16]:
    return np.empty(0, dtype=np.int16)


@dataclass(frozen=True, eq=False)
class Trace:
    """N requests in order of arrival.

    The optional columns may be left out: no labels, no sessions, no prefix data.

    Attributes:
        name: for tables and plots.
        arrival_s: float64[N], seconds from the start, sorted, >= 0.
        isl_tokens: int32[N], prompt tokens, 1 to `MAX_TOKENS`.
        osl_tokens: int32[N], output tokens, 1 to `MAX_TOKENS`.
        duration_s: length of the trace; at least the last arrival. Costs are counted until here.
        label: int16[N], index in `labels`; -1 where the trace says nothing.
        labels: names of the kinds of request, as the trace tells them.
        block_ids: int32[M], the prefix blocks of all requests one after another.
        block_offsets: int64[N + 1]; request r owns ``block_ids[block_offsets[r]:block_offsets[r +
            1]]``.
        block_tokens: tokens per block.
        session_id: int32[N]; requests of one conversation share it; -1 where unknown.
    """

    name: str
    arrival_s: NDArray[np.float64]
    isl_tokens: NDArray[np.int32]
    osl_tokens: NDArray[np.int32]
    duration_s: float
    label: NDArray[np.int16] = field(default_factory=_empty_int16)
    labels: tuple[str, ...] = ()
    block_ids: NDArray[np.int32] = field(default_factory=_no_blocks)
    block_offsets: NDArray[np.int64] = field(default_factory=_empty_int64)
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    session_id: NDArray[np.int32] = field(default_factory=_no_blocks)

    def __post_init__(self) -> None:
        """Fill the optional columns, bring all to their types, and check them."""
        n = len(self.arrival_s)
        arrival_s = np.ascontiguousarray(self.arrival_s, dtype=np.float64)
        # Checked before the cast to int32, which would turn NaN and 2**40 into something plausible.
        isl, osl = np.asarray(self.isl_tokens), np.asarray(self.osl_tokens)
        if len(isl) != n or len(osl) != n:
            self._refuse(f"columns differ in length: {n} arrivals, {len(isl)} isl, {len(osl)} osl")
        problem = find_problem(arrival_s, isl, osl)
        if problem is not None:
            self._refuse(
                f"request {problem.index} field {problem.field}: "
                f"value {problem.value:.15g} {problem.why}"
            )
        last = float(arrival_s[-1]) if n else 0.0
        if not (np.isfinite(self.duration_s) and self.duration_s >= last):
            self._refuse(
                f"field duration_s: must be finite and >= the last arrival {last}, "
                f"got {self.duration_s}"
            )
        offsets = self.block_offsets if len(self.block_offsets) else np.zeros(n + 1)
        columns: dict[str, NDArray[np.generic]] = {
            "arrival_s": arrival_s,
            "isl_tokens": np.ascontiguousarray(isl, dtype=np.int32),
            "osl_tokens": np.ascontiguousarray(osl, dtype=np.int32),
            "label": _filled(self.label, n, np.int16),
            "session_id": _filled(self.session_id, n, np.int32),
            "block_ids": np.ascontiguousarray(self.block_ids, dtype=np.int32),
            "block_offsets": np.ascontiguousarray(offsets, dtype=np.int64),
        }
        for name, column in columns.items():
            object.__setattr__(self, name, column)
        object.__setattr__(self, "duration_s", float(self.duration_s))
        self._check_labels(n)
        self._check_blocks(n)

    def derived(self, **columns: Any) -> Trace:
        """A copy with other columns, not checked again.

        For columns of the right types that are sound because those they were made of are.
        """
        derived = object.__new__(Trace)
        derived.__dict__.update(self.__dict__, **columns)
        return derived

    def _refuse(self, what: str) -> None:
        raise TraceError(f"trace {self.name}: {what}")

    def _check_labels(self, n: int) -> None:
        for name, column in (("label", self.label), ("session_id", self.session_id)):
            if len(column) != n:
                self._refuse(f"field {name}: {len(column)} values for {n} requests")
        if n and (self.label.max() >= len(self.labels) or self.label.min() < -1):
            index = int(np.argmax((self.label >= len(self.labels)) | (self.label < -1)))
            self._refuse(
                f"request {index} field label: value {self.label[index]} names none of the "
                f"{len(self.labels)} labels"
            )
        if len(set(self.labels)) != len(self.labels):
            self._refuse(f"field labels: names repeat in {self.labels}")

    def _check_blocks(self, n: int) -> None:
        if self.block_tokens < 1:
            self._refuse(f"field block_tokens: must be >= 1, got {self.block_tokens}")
        offsets = self.block_offsets
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != len(self.block_ids):
            self._refuse(
                "field block_offsets: must hold one more value than there are requests, "
                "from 0 to the number of ids"
            )
        counts = np.diff(offsets)
        # More blocks than the prompt begins: even all but the last hold more tokens than it has.
        bad = (counts < 0) | ((counts - 1) * self.block_tokens >= self.isl_tokens)
        if bad.any():
            index = int(np.argmax(bad))
            self._refuse(
                f"request {index} field block_ids: {counts[index]} blocks of {self.block_tokens} "
                f"tokens for a prompt of {self.isl_tokens[index]}"
            )
        if len(self.block_ids):
            if int(self.block_ids.min()) < 0:
                self._refuse(f"field block_ids: negative id {self.block_ids.min()}")
            seen = np.zeros(int(self.block_ids.max()) + 1, dtype=np.bool_)
            seen[self.block_ids] = True
            if not seen.all():
                self._refuse(
                    f"field block_ids: ids must be dense, {int(np.argmin(seen))} is never used"
                )

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    @property
    def n_blocks(self) -> int:
        """Number of different prefix blocks; 0 where the trace has no prefix data."""
        return int(self.block_ids.max()) + 1 if len(self.block_ids) else 0

    @property
    def mean_rate_rps(self) -> float:
        """Requests per second over the whole duration."""
        return len(self) / self.duration_s if self.duration_s > 0 else 0.0

    def renamed(self, name: str) -> Trace:
        """The same requests under another name."""
        return self.derived(name=name)

    def with_labels(self, labels: str | Sequence[str]) -> Trace:
        """The same requests with new labels: one name for all, or one name per request."""
        if isinstance(labels, str):
            return self.derived(label=np.zeros(len(self), dtype=np.int16), labels=(labels,))
        if len(labels) != len(self):
            self._refuse(f"field labels: {len(labels)} values for {len(self)} requests")
        names, index = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
        if len(names) > MAX_LABELS:
            self._refuse(f"field labels: {len(names)} different names, at most {MAX_LABELS}")
        return replace(
            self, label=index.astype(np.int16), labels=tuple(str(name) for name in names)
        )

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> Trace:
        """Only the requests of a mask or of a sorted index; block ids are made dense again."""
        if keep.dtype == np.bool_:
            return self._taken(np.flatnonzero(keep))
        return replace(self._taken(keep.astype(np.int64)))  # checks that the index was sorted

    def _taken(self, index: NDArray[np.int64]) -> Trace:
        counts = np.diff(self.block_offsets)[index]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        blocks = gather(self.block_ids, self.block_offsets[:-1][index], counts)
        return self.derived(
            arrival_s=self.arrival_s[index],
            isl_tokens=self.isl_tokens[index],
            osl_tokens=self.osl_tokens[index],
            label=self.label[index],
            session_id=self.session_id[index],
            block_ids=dense_ids(blocks),
            block_offsets=offsets,
        )

    def slice(self, start_s: float, end_s: float) -> Trace:
        """The requests that arrive in [start_s, end_s), with time counted from start_s."""
        if not 0 <= start_s < end_s:
            self._refuse(f"slice from {start_s} s to {end_s} s is empty or starts before 0")
        low, high = np.searchsorted(self.arrival_s, (start_s, end_s), side="left")
        part = self._taken(np.arange(low, high))
        return part.derived(arrival_s=part.arrival_s - start_s, duration_s=float(end_s - start_s))

    def scale(self, *, time: float = 1.0, rate: float = 1.0, seed: int = 0) -> Trace:
        """Stretch time by `time` and multiply the number of requests by `rate`; see `transform`."""
        from hrl_planner.workload.transform import scale

        return scale(self, time=time, rate=rate, seed=seed)


def ragged_arange(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``concatenate([arange(s, s + c) for s, c in zip(starts, counts)])`` without the loop."""
    total = int(counts.sum())
    ends = np.cumsum(counts)
    within = np.arange(total, dtype=np.int64)
    within += np.repeat(starts - (ends - counts), counts)
    return within


def dense_ids(ids: NDArray[np.integer]) -> NDArray[np.int32]:
    """The same ids renumbered 0 to n - 1 in their own order; ids that are dense already stay."""
    if len(ids) == 0:
        return _no_blocks()
    highest = int(ids.max())
    if int(ids.min()) >= 0 and highest <= 8 * len(ids):  # a table: one pass instead of a sort
        rank = np.zeros(highest + 1, dtype=np.int32)
        rank[ids] = 1
        np.cumsum(rank, out=rank)
        table: NDArray[np.int32] = rank[ids] - 1
        return table
    inverse: NDArray[np.int64] = np.unique(ids, return_inverse=True)[1]
    return inverse.astype(np.int32)


def _filled(column: NDArray[np.generic], n: int, dtype: type[np.integer]) -> NDArray[np.integer]:
    """A column of -1 where none was given."""
    if len(column) == 0 and n:
        return np.full(n, -1, dtype=dtype)
    return np.ascontiguousarray(column, dtype=dtype)
