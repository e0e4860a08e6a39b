"""The invariant, checked by somebody who is no planner: GPUs held by pods against the budget.

Held are the GPUs of all pods that have not ended: bound or waiting for a node, starting, serving,
draining. They are counted at every revision of the store, so between two counts nothing happened,
and sampled ten times a second besides. Per GPU type, held must not exceed

* the budget, or, after somebody lowered the budget, what planners had granted by then; that only
  falls from then on, down to the new budget;
* plus what an outside act adds by itself until planners have dealt with it: the replacement of a
  pod that was deleted by hand while that pod drains, and the replicas a hand asked for.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cluster.store import State, Write
from hrl_planner.spec import ClusterSpec

_SAMPLE_S = 0.1
_KEPT_WRITES = 200
_KEPT_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Scaling:
    """A change of what a pool's deployment is asked for."""

    at_s: float
    pool: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Violation:
    """A count above what there may be, with everything needed to understand it."""

    at_s: float
    revision: int
    gpu_type: str
    held: int
    allowed: int
    budget: int
    outside: int
    during: tuple[str, ...]
    state: dict[str, Any]
    writes: tuple[Write, ...]

    def to_json(self) -> str:
        """Return it for a file."""
        return json.dumps(asdict(self), indent=1, default=str)


@dataclass
class _Outside:
    """What an outside act may hold beside what planners gave, until it is over."""

    pool: str
    replicas: int
    over: Callable[[State], bool]


@dataclass
class Counts:
    """What the observer did and saw.

    Attributes:
        samples: looks, ten a second.
        revisions: of the store, each counted once.
        over_samples, over_revisions: of those, above what there may be.
        during: samples by the kind of fault under way.
        most: most GPUs held, by type.
        states: different ways in which GPUs were held.
        above_lowered: rises of held above a budget that had just been lowered, on older grants.
        outside: revisions above the budget by no more than outside acts account for.
    """

    samples: int = 0
    revisions: int = 0
    over_samples: int = 0
    over_revisions: int = 0
    during: Counter[str] = field(default_factory=Counter)
    most: dict[str, int] = field(default_factory=dict)
    states: set[tuple[int, ...]] = field(default_factory=set)
    above_lowered: int = 0
    outside: int = 0


class Observer:
    """Counts; `on_revision` is the store's.

    Args:
        spec: pools, their GPU types and GPUs per replica.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self._pools = {p.name: (p.gpu_type, p.gpus_per_replica) for p in spec.pools}
        self._group = spec.name
        self._kinds = tuple(spec.budget.gpus)
        self._outside: list[_Outside] = []
        self._granted_then: dict[str, int] = {}
        self._budget: dict[str, int] = {}
        self._held: dict[str, int] = dict.fromkeys(self._kinds, 0)
        self._targets: dict[str, int] = {}
        self._writes: deque[Write] = deque(maxlen=_KEPT_WRITES)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="observer", daemon=True)
        self.counts = Counts()
        self.violations: list[Violation] = []
        self.scalings: list[Scaling] = []
        self.during: tuple[str, ...] = ()

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def allow(self, pool: str, replicas: int, over: Callable[[State], bool]) -> None:
        """Allow for an outside act: so many replicas of a pool, until it is over."""
        with self._lock:
            self._outside.append(_Outside(pool, replicas, over))

    def on_revision(self, state: State, writes: list[Write]) -> None:
        """Count at a revision."""
        with self._lock:
            self._writes.extend(writes)
            self._note_scalings(state, time.time())
            if self._group not in state.groups:
                return
            self._outside = [act for act in self._outside if not act.over(state)]
            self._note_budget(state)
            held = self._count(state)
            rises = [kind for kind in self._kinds if held[kind] > self._held[kind]]
            self._held = held
            self.counts.revisions += 1
            self.counts.states.add(tuple(self._by_pool(state).values()))
            for kind, count in held.items():
                self.counts.most[kind] = max(count, self.counts.most.get(kind, 0))
            for kind in self._kinds:
                self._judge(kind, state, rose=kind in rises)

    def _judge(self, kind: str, state: State, *, rose: bool) -> None:
        held, budget = self._held[kind], self._budget[kind]
        if held <= budget:
            return
        outside, allowed = self._allowed(kind)
        if held > allowed:
            self.counts.over_revisions += 1
            self._keep(kind, state, allowed, outside)
        elif held <= budget + outside:
            self.counts.outside += 1
        elif rose:
            self.counts.above_lowered += 1

    def _allowed(self, kind: str) -> tuple[int, int]:
        """Return what outside acts add, and what may be held with it."""
        outside = sum(
            act.replicas * self._pools[act.pool][1]
            for act in self._outside
            if self._pools[act.pool][0] == kind
        )
        return outside, max(self._budget[kind], self._granted_then[kind]) + outside

    def _note_budget(self, state: State) -> None:
        """Follow the budget; where it was lowered, remember what had been granted by then."""
        budget = state.groups[self._group]["spec"]["budget"]["gpus"]
        for kind in self._kinds:
            granted = self._granted(state, kind)
            if kind not in self._budget:
                self._granted_then[kind] = max(budget[kind], self._count(state)[kind])
            elif budget[kind] < self._budget[kind]:
                # Whatever was held or granted at that moment fitted then.
                self._granted_then[kind] = max(granted, self._held[kind])
            else:
                self._granted_then[kind] = min(self._granted_then[kind], max(granted, budget[kind]))
            self._budget[kind] = budget[kind]

    def _granted(self, state: State, kind: str) -> int:
        """Return GPUs of a type that planners have given away: quotas, books and open claims."""
        claims = state.groups[self._group].get("status", {}).get("claims", ())
        claimed = {claim["pool"]: claim["quota"] for claim in claims}
        total = 0
        pods = self._by_pool(state)
        for name, (its_kind, gpus) in self._pools.items():
            if its_kind != kind:
                continue
            item = state.pools.get(name, {"spec": {}})
            status = item.get("status", {})
            claim = status.get("claim") or {"to": 0, "start": 0}
            booked = status.get("reserved", 0) + claim["to"] - claim["start"]
            quota = item["spec"].get("quota") or 0
            total += gpus * max(quota, booked, claimed.get(name, 0), pods[name])
        return total

    def _by_pool(self, state: State) -> dict[str, int]:
        holding = Counter(pod.pool for pod in state.pods.values() if pod.holds)
        return {name: holding[name] for name in self._pools}

    def _count(self, state: State) -> dict[str, int]:
        held = dict.fromkeys(self._kinds, 0)
        for name, count in self._by_pool(state).items():
            kind, gpus = self._pools[name]
            held[kind] += gpus * count
        return held

    def _note_scalings(self, state: State, now_s: float) -> None:
        for pool, after in state.targets.items():
            before = self._targets.get(pool, after)
            if before != after:
                self.scalings.append(Scaling(now_s, pool, before, after))
        self._targets = dict(state.targets)

    def _keep(self, kind: str, state: State, allowed: int, outside: int) -> None:
        if len(self.violations) < _KEPT_VIOLATIONS:
            seen = {
                "pods": {name: asdict(pod) for name, pod in state.pods.items()},
                "targets": dict(state.targets),
                "pools": {n: [p["spec"], p.get("status")] for n, p in state.pools.items()},
                "group": state.groups[self._group],
            }
            self.violations.append(
                Violation(
                    time.time(), state.revision, kind, self._held[kind], allowed,
                    self._budget[kind], outside, self.during, seen, tuple(self._writes),
                )
            )  # fmt: skip

    def _sample(self) -> None:
        """Look ten times a second, whatever the store does: what it last said is what there is."""
        while not self._stop.wait(_SAMPLE_S):
            with self._lock:
                if not self._budget:
                    continue
                self.counts.samples += 1
                self.counts.during.update(self.during or ("nothing",))
                over = any(self._held[k] > self._allowed(k)[1] for k in self._kinds)
                self.counts.over_samples += over
