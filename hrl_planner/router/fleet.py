"""The workers as the routing rules see them: one slot each, in arrays.

Each pool owns a fixed range of slots. A worker that discovery reports takes a free slot of its
pool and keeps it until it is reported no more; then the slot's *epoch* goes up, so that what is
still booked on the old worker cannot be booked on the next one. Load numbers are written by
`flights`, the weights by the planner, `accepting` here: a worker takes requests while it is
reported ready, its process is alive, it gets on with what it has, and it has not just failed one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrl_planner.choice import ROUTE_GLOBAL, RouteState
from hrl_planner.route_table import grid_tables, pack_surfaces, route_table
from hrl_planner.router.classes import Classes
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.routing import AGGREGATED, DECODE, NOBODY, ROUTER_KINDS, WORKER_LOAD
from hrl_planner.slo_routing import guards_s
from hrl_planner.spec import ClusterSpec

log = logging.getLogger(__name__)

# A pool may hold more pods than its most replicas: some drain while others replace them.
_SPARE = 2


@dataclass(slots=True)
class _Seat:
    """A slot's worker and what is known of its health."""

    worker: Worker
    alive: bool = True
    stalled: bool = False
    suspended_until_s: float = -math.inf
    failures: int = 0


@dataclass(slots=True)
class Place:
    """A worker at one moment: slot and epoch together name it for ever."""

    slot: int
    epoch: int
    worker: Worker
    pool: int = field(default=NOBODY)


class Fleet:
    """All slots.

    Attributes:
        spec: the cluster.
        state: the arrays `choice` reads.
        epoch: workers that left each slot so far, shape (W,).
        pool_of: pool of each slot, shape (W,).
    """

    def __init__(self, spec: ClusterSpec, classes: Classes) -> None:
        self.spec = spec
        self._classes = classes
        packed = pack_surfaces(spec)
        pools = route_table(spec, packed)
        pools["n_slots"] = [pool.max_replicas * _SPARE for pool in spec.pools]
        pools["first"] = np.concatenate(([0], np.cumsum(pools["n_slots"])[:-1]))
        n_slots, n_pools = int(pools["n_slots"].sum()), len(spec.pools)
        load = np.zeros(n_slots, WORKER_LOAD)
        load["pool"] = np.repeat(np.arange(n_pools), pools["n_slots"])
        g = np.zeros(1, ROUTE_GLOBAL)
        g["router"] = ROUTER_KINDS[spec.router.kind]
        g["overlap_weight"] = spec.router.overlap_weight
        g["block_tokens"] = spec.kv_block_tokens
        g["prefill_turn"] = g["decode_turn"] = NOBODY
        shape = (len(classes.names), n_pools)
        self.state = RouteState(
            g,
            pools,
            packed.record,
            packed.table,
            load,
            np.zeros(n_slots, np.int64),
            np.zeros(shape),
            np.zeros(shape),
            np.full(shape, np.inf),
            np.zeros(n_pools),
            np.zeros(n_pools, np.int64),
            *grid_tables(spec),
        )
        self.pool_of: NDArray[np.int32] = load["pool"].copy()
        self.epoch = np.zeros(n_slots, np.int64)
        self._seats: list[_Seat | None] = [None] * n_slots
        self._slot_of: dict[str, int] = {}

    def __len__(self) -> int:
        """Workers that have a slot."""
        return len(self._slot_of)

    def __iter__(self) -> Iterator[Place]:
        """All workers."""
        return iter([self.place(slot) for slot in self._slot_of.values()])

    def slot(self, name: str) -> int:
        """Return the slot of a worker, or NOBODY."""
        return self._slot_of.get(name, NOBODY)

    def place(self, slot: int) -> Place:
        """Return the worker in an occupied slot."""
        seat = self._seats[slot]
        if seat is None:
            raise LookupError(f"slot {slot} is empty")
        return Place(slot, int(self.epoch[slot]), seat.worker, int(self.pool_of[slot]))

    def is_current(self, place: Place) -> bool:
        """Tell whether a worker still has its slot."""
        return bool(self.epoch[place.slot] == place.epoch)

    def answers(self, slot: int) -> bool:
        """Tell whether requests stay at this worker for their answer."""
        return int(self.state.pools[self.pool_of[slot]]["role"]) in (DECODE, AGGREGATED)

    def apply(self, snapshot: Snapshot, now_s: float) -> dict[int, str]:
        """Take over a snapshot; return the slots whose workers it lacks, with their names."""
        named = {worker.name: worker for worker in snapshot.workers}
        removed = [slot for name, slot in self._slot_of.items() if name not in named]
        # A worker under an old name but at another address is another process.
        removed += [
            slot
            for name, slot in self._slot_of.items()
            if name in named and _identity(self.place(slot).worker) != _identity(named[name])
        ]
        gone = {slot: self.place(slot).worker.name for slot in removed}
        for slot in removed:
            self._vacate(slot)
        for name, worker in named.items():
            slot = self._slot_of.get(name, NOBODY)
            if slot == NOBODY:
                slot = self._seat_new(worker)
                if slot == NOBODY:
                    continue
            else:
                seat = self._seats[slot]
                assert seat is not None
                seat.worker = worker
            self._refresh(slot, now_s)
        self._take_weights(snapshot)
        return gone

    def set_alive(self, name: str, alive: bool, now_s: float) -> None:
        """Note that a worker's process is there, or is not."""
        slot = self._slot_of.get(name, NOBODY)
        if slot != NOBODY:
            seat = self._seats[slot]
            assert seat is not None
            seat.alive = alive
            if alive:
                seat.failures, seat.suspended_until_s = 0, -math.inf
            self._refresh(slot, now_s)

    def set_stalled(self, name: str, stalled: bool, now_s: float) -> bool:
        """Note whether a worker has requests and gets nowhere with them; tell if that is news."""
        slot = self._slot_of.get(name, NOBODY)
        seat = self._seats[slot] if slot != NOBODY else None
        if seat is None or seat.stalled == stalled:
            return False
        seat.stalled = stalled
        self._refresh(slot, now_s)
        return True

    def failed(self, place: Place, now_s: float) -> None:
        """Note a failed request: the worker takes a pause that doubles with each in a row."""
        seat = self._seats[place.slot]
        if seat is None or not self.is_current(place):
            return
        seat.failures += 1
        seat.suspended_until_s = now_s + min(30.0, 0.5 * 2.0 ** (seat.failures - 1))
        self._refresh(place.slot, now_s)

    def served(self, place: Place) -> None:
        """Note a request that went well."""
        seat = self._seats[place.slot]
        if seat is not None and self.is_current(place):
            seat.failures = 0

    def wake(self, now_s: float) -> None:
        """Let workers accept again whose pause is over."""
        for slot in self._slot_of.values():
            seat = self._seats[slot]
            if seat is not None and math.isfinite(seat.suspended_until_s):
                self._refresh(slot, now_s)

    def _refresh(self, slot: int, now_s: float) -> None:
        seat = self._seats[slot]
        assert seat is not None
        rests = now_s < seat.suspended_until_s
        if not rests:
            seat.suspended_until_s = -math.inf
        accepts = seat.alive and not seat.stalled and not seat.worker.draining and not rests
        self.state.load[slot]["accepting"] = int(accepts)

    def _seat_new(self, worker: Worker) -> int:
        try:
            index = self.spec.pool_index(worker.pool)
        except Exception:
            log.warning(
                "worker of unknown pool", extra={"worker": worker.name, "pool": worker.pool}
            )
            return NOBODY
        pool = self.state.pools[index]
        for slot in range(int(pool["first"]), int(pool["first"] + pool["n_slots"])):
            if self._seats[slot] is None:
                self._seats[slot] = _Seat(worker)
                self._slot_of[worker.name] = slot
                return slot
        log.warning("pool has no free slot", extra={"worker": worker.name, "pool": worker.pool})
        return NOBODY

    def _vacate(self, slot: int) -> None:
        seat = self._seats[slot]
        assert seat is not None
        del self._slot_of[seat.worker.name]
        self._seats[slot] = None
        self.epoch[slot] += 1
        row = self.state.load[slot]
        row["accepting"] = row["active"] = row["backlog_tokens"] = row["kv_blocks"] = 0

    def _take_weights(self, snapshot: Snapshot) -> None:
        weights = self._classes.weights(snapshot.flows, self.spec)
        if not np.array_equal(weights, self.state.flows):
            self.state.flows[:] = weights
            self.state.served[:] = 0.0
            self.state.guard_s[:] = guards_s(weights, self._classes.ttft_s, self._classes.value)


def _identity(worker: Worker) -> tuple[str, str]:
    return worker.pool, worker.address
