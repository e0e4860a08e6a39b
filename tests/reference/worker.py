"""Requests and replicas as the plain simulator keeps them, over the worker that engines run.

What a worker does in a step is `hrl_planner.mock_engine.model`; here is what a cluster adds: which
pool a replica belongs to, where it is in its life, and the result row of a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from hrl_planner.mock_engine import model
from hrl_planner.spec import PoolSpec

UNFINISHED, FINISHED, REJECTED = range(3)


@dataclass(eq=False, kw_only=True)
class Request(model.Request):
    """One offered request: what it asks for, how far it is, and its result row."""

    index: int
    arrival_s: float
    class_id: int
    prefill_pool: int = -1
    decode_pool: int = -1
    finish_s: float = math.nan
    status: int = UNFINISHED
    restarts: int = 0
    worker: Replica | None = None
    under_way: bool = False  # its KV cache is on the way to `worker`
    expected_tokens: int = 0  # prompt tokens to compute, as the router foresaw them

    def forget_progress(self) -> None:
        """Lose every token: the worker died."""
        self.prefill_pool = self.decode_pool = -1
        self.cached_tokens = 0
        self.worker = None
        self.under_way = self.looked_up = self.holds_kv = False
        self.computed = self.generated = 0


class State(Enum):
    """The life of a replica."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(eq=False)
class Pool:
    """What all workers of a pool share."""

    index: int
    spec: PoolSpec
    times: model.StepTimes
    limits: model.Limits
    first_slot: int
    kv_tokens: int
    target: int = 0
    starts: int = 0

    @property
    def prefills(self) -> bool:
        """Whether requests enter the cluster here."""
        return self.spec.role in ("prefill", "aggregated")

    @property
    def aggregated(self) -> bool:
        """Whether requests stay here for their answer."""
        return self.spec.role == "aggregated"


class Replica(model.Worker[Request]):
    """One worker from its start to its end.

    Attributes:
        start: the how manieth of its pool, from 0: says which draws are its own.
        assigned: requests in its queues and those under way to it.
        step_ends_s: end of the step under way.
        waking: idle, and about to look at its queues.
    """

    def __init__(
        self, pool: Pool, slot: int, ready_s: float, start: int, state: State = State.STARTING
    ) -> None:
        """Place a replica that is ready at a time."""
        startup = pool.spec.startup
        warmup = model.Warmup(ready_s + startup.warmup_s, startup.warmup_slowdown)
        super().__init__(pool.limits, pool.times, warmup)
        self.pool = pool
        self.slot = slot
        self.ready_s = ready_s
        self.start = start
        self.state = state
        self.assigned: list[Request] = []
        self.step_ends_s = 0.0
        self.waking = False
