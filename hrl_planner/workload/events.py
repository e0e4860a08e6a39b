"""Things that happen to a cluster during a run besides requests.

A scenario is a trace plus a list of these: GPUs that vanish, a person who edits replicas by hand, a
worker that dies, a scrape that fails. The simulator applies them at their time; planners only see
what follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from hrl_planner.errors import ScenarioError
from hrl_planner.spec import ClusterSpec

EventKind = Literal["inventory", "set_replicas", "kill_worker", "metrics_outage", "blind_profile"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """One event at one time.

    Attributes:
        t_s: when it happens, seconds from the start of the trace.
        kind: what happens:

            - ``inventory``: from now on only ``value`` GPUs of ``gpu_type`` physically exist,
              whatever the budget grants. Replicas that run are left alone; new ones beyond it stay
              pending.
            - ``set_replicas``: a hand sets the target of ``pool`` to ``value``, past the planner.
            - ``kill_worker``: ``value`` ready workers of ``pool`` die; their requests restart.
            - ``metrics_outage``: ``pool`` (None: every pool) reports nothing for ``value`` seconds.
            - ``blind_profile``: planners are not told the profile of ``pool``; only at 0.
        pool: name of the pool it concerns, where the kind needs one.
        gpu_type: the GPU type, for ``inventory``.
        value: the number the kind speaks of.
    """

    t_s: float
    kind: EventKind
    pool: str | None = None
    gpu_type: str | None = None
    value: float = 1.0

    def __post_init__(self) -> None:
        """Refuse events that no cluster could carry out."""
        if self.kind not in EVENT_KINDS:
            raise ScenarioError(
                f"event field kind: unknown value {self.kind!r}; one of {', '.join(EVENT_KINDS)}"
            )
        for field, number in (("t_s", self.t_s), ("value", self.value)):
            if not math.isfinite(number) or number < 0:
                raise ScenarioError(
                    f"event {self.kind} field {field}: must be a finite number >= 0, got {number}"
                )
        if self.kind == "blind_profile" and (self.t_s, self.value) != (0.0, 1.0):
            raise ScenarioError(
                f"event blind_profile: holds from the start and for good (t_s 0, value 1), got "
                f"t_s {self.t_s}, value {self.value}"
            )
        if self.kind == "inventory" and self.gpu_type is None:
            raise ScenarioError("event inventory field gpu_type: must name a GPU type, got None")
        if self.kind in ("set_replicas", "kill_worker", "blind_profile") and self.pool is None:
            raise ScenarioError(f"event {self.kind} field pool: must name a pool, got None")


def blind_pools(events: Iterable[ClusterEvent], spec: ClusterSpec) -> frozenset[int]:
    """Return the indices of pools whose profile planners must not use."""
    named = {event.pool for event in events if event.kind == "blind_profile"}
    return frozenset(spec.pool_index(name) for name in named if name is not None)
