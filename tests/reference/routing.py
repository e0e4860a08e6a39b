"""The router: the shared rules of `hrl_planner.routing`, fed with the reference's objects.

The rules are the project's own and not written twice; what is checked here is what the kernel gives
them to see. Every choice builds its arrays anew from the workers as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner import routing, slo_routing, surface
from hrl_planner.spec import GridSpec
from tests.reference.worker import Pool, Replica, Request, State

if TYPE_CHECKING:
    from tests.reference.simulation import ReferenceSimulation

ROLES = {
    "prefill": routing.PREFILL,
    "decode": routing.DECODE,
    "aggregated": routing.AGGREGATED,
}
TYPICAL_BATCH = 64
TYPICAL_CONTEXT = 2048


class Router:
    """Chooses workers; remembers whose turn it is and what each pool got."""

    def __init__(self, simulation: ReferenceSimulation) -> None:
        """Describe the pools to the rules; no weights yet."""
        self.simulation = simulation
        spec = simulation.spec
        self.kind = spec.router.kind
        self.turn = {False: routing.NOBODY, True: routing.NOBODY}  # by "decode"
        self.weights = np.zeros((len(spec.slo_classes), len(spec.pools)))
        self.served = np.zeros_like(self.weights)
        self.surfaces, self.table = surface.concatenate(
            [
                surface.pack(profile, pool.max_num_seqs, pool.latency_scale)
                for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            ]
        )
        self.pools = np.zeros(len(spec.pools), routing.POOL_ROUTE)
        for pool in simulation.pools:
            self._describe(pool)

    def set_weights(self, flows: NDArray[np.float64]) -> None:
        """Take the planner's class-to-pool flows and count from 0 again."""
        self.weights[:] = flows
        self.served[:] = 0.0

    def prefill_worker(self, request: Request, fresh: bool) -> Replica | int:
        """Return the worker for a prompt, or NOBODY, or REJECT."""
        load = self._load()
        overlap = np.zeros(load.size, np.int64)
        if self.kind in ("kv_slo", "static_grid"):
            for replica in self._ready():
                overlap[replica.slot] = replica.overlap_tokens(request)
        if self.kind == "kv_slo":
            slot = self._prefill_by_slo(request, load, overlap, fresh)
        elif self.kind == "static_grid":
            slot = self._by_grid(request, load, overlap, decode=False)
        else:
            slot = self._in_turn(request, load, decode=False)
        if slot < 0:
            return slot
        request.expected_tokens = max(1, request.isl - int(overlap[slot]))
        return self._replica(slot)

    def decode_worker(self, request: Request) -> Replica | None:
        """Return the worker for an answer, or None."""
        load = self._load()
        if self.kind == "kv_slo":
            slot = self._decode_by_slo(request, load)
        elif self.kind == "static_grid":
            slot = self._by_grid(request, load, np.zeros(load.size, np.int64), decode=True)
        else:
            slot = self._in_turn(request, load, decode=True)
        return None if slot < 0 else self._replica(slot)

    # ---- the four kinds

    def _in_turn(self, request: Request, load: NDArray[Any], decode: bool) -> int:
        if self.kind == "least_loaded":
            return self._least_loaded(request, load, decode)
        slot = routing.pick_next(
            self.pools, load, request.isl, request.kv_blocks, decode, self.turn[decode]
        )
        if slot >= 0:
            self.turn[decode] = slot
        return slot

    def _least_loaded(self, request: Request, load: NDArray[Any], decode: bool) -> int:
        return routing.pick_least_loaded(self.pools, load, request.isl, request.kv_blocks, decode)

    def _by_grid(
        self, request: Request, load: NDArray[Any], overlap: NDArray[np.int64], decode: bool
    ) -> int:
        spec = self.simulation.spec
        slo = spec.slo_classes[request.class_id]
        grid = spec.router.decode_grid if decode else spec.router.prefill_grid
        assert grid is not None
        index = self._grid_pool(grid, request.isl, slo.itl_ms if decode else slo.ttft_ms)
        pool = self.pools[index]
        slot = routing.NOBODY
        if routing.fits(pool, request.isl, request.kv_blocks):
            if decode:
                slot = routing.pick_decode_worker(load, pool["first"], pool["n_slots"])
            else:
                slot = routing.pick_prefill_worker(
                    load,
                    pool["first"],
                    pool["n_slots"],
                    request.isl,
                    overlap,
                    spec.router.overlap_weight,
                )
        return slot if slot >= 0 else self._least_loaded(request, load, decode)

    def _grid_pool(self, grid: GridSpec, length: int, target_ms: float) -> int:
        names = [[self.simulation.spec.pool_index(name) for name in row] for row in grid.pools]
        return routing.grid_pool(
            np.array(grid.isl_edges, np.float64),
            np.array(grid.target_edges_ms, np.float64),
            np.array(names, np.int64),
            float(length),
            target_ms,
        )

    def _prefill_by_slo(
        self, request: Request, load: NDArray[Any], overlap: NDArray[np.int64], fresh: bool
    ) -> int:
        spec = self.simulation.spec
        slo = spec.slo_classes[request.class_id]
        ratio = np.empty(len(self.pools))
        candidate = np.empty(len(self.pools), np.int64)
        slo_routing.prefill_ratios(
            self.pools,
            self.surfaces,
            self.table,
            load,
            overlap,
            spec.router.overlap_weight,
            spec.kv_block_tokens,
            request.isl,
            request.kv_blocks,
            slo.ttft_ms * 1e-3 - (self.simulation.now_s - request.arrival_s),
            slo.itl_ms * 1e-3,
            self._guards()[request.class_id],
            ratio,
            candidate,
        )
        index = self._pick_pool(request, ratio)
        if index < 0:
            return routing.NOBODY
        if fresh and slo.shed_above is not None:
            later = np.full(len(self.pools), np.inf)
            if self.pools[index]["role"] == routing.PREFILL:
                later, _ = self._decode_ratios(request, load)
            if slo_routing.hopeless(ratio[index], later, slo.shed_above):
                return routing.REJECT
        self.served[request.class_id, index] += 1.0
        return int(candidate[index])

    def _guards(self) -> NDArray[np.float64]:
        classes = self.simulation.spec.slo_classes
        return slo_routing.guards_s(
            self.weights,
            np.array([slo.ttft_ms for slo in classes]) * 1e-3,
            np.array([slo.value for slo in classes]),
        )

    def _decode_by_slo(self, request: Request, load: NDArray[Any]) -> int:
        ratio, candidate = self._decode_ratios(request, load)
        index = self._pick_pool(request, ratio)
        if index < 0:
            return routing.NOBODY
        self.served[request.class_id, index] += 1.0
        return int(candidate[index])

    def _decode_ratios(
        self, request: Request, load: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        spec = self.simulation.spec
        ratio = np.empty(len(self.pools))
        candidate = np.empty(len(self.pools), np.int64)
        slo_routing.decode_ratios(
            self.pools,
            self.surfaces,
            self.table,
            load,
            spec.kv_block_tokens,
            request.kv_blocks,
            spec.slo_classes[request.class_id].itl_ms * 1e-3,
            ratio,
            candidate,
        )
        return ratio, candidate

    def _pick_pool(self, request: Request, ratio: NDArray[np.float64]) -> int:
        return routing.pick_pool(
            ratio,
            self.weights[request.class_id],
            self.served[request.class_id],
            np.ascontiguousarray(self.pools["price_per_token"]),
        )

    # ---- what the rules see

    def _ready(self) -> list[Replica]:
        return [r for r in self.simulation.slots if r is not None and r.state is State.READY]

    def _replica(self, slot: int) -> Replica:
        replica = self.simulation.slots[slot]
        assert replica is not None and replica.state is State.READY
        return replica

    def _load(self) -> NDArray[Any]:
        load = np.zeros(len(self.simulation.slots), routing.WORKER_LOAD)
        for pool in self.simulation.pools:
            load["pool"][pool.first_slot : pool.first_slot + pool.spec.max_replicas] = pool.index
        for replica in self._ready():
            record = load[replica.slot]
            record["accepting"] = 1
            record["active"] = len(replica.assigned)
            record["backlog_tokens"] = sum(r.expected_tokens for r in replica.fifo)
            if replica.pool.spec.role != "prefill":
                record["kv_blocks"] = sum(request.kv_blocks for request in replica.assigned)
        return load

    def _describe(self, pool: Pool) -> None:
        spec = self.simulation.spec
        batched = pool.spec.max_num_batched_tokens
        saturated = pool.times.prefill_s(1, batched, 0.0) / batched
        batch = min(TYPICAL_BATCH, pool.spec.max_num_seqs)
        decode = pool.times.decode_s(batch, TYPICAL_CONTEXT) / batch
        per_token = decode if pool.spec.role == "decode" else saturated
        link = spec.kv_transfer
        record = self.pools[pool.index]
        record["role"] = ROLES[pool.spec.role]
        record["first"] = pool.first_slot
        record["n_slots"] = pool.spec.max_replicas
        record["max_num_seqs"] = pool.spec.max_num_seqs
        record["kv_capacity_tokens"] = pool.kv_tokens
        record["kv_capacity_blocks"] = pool.limits.kv_blocks
        record["decodable_blocks"] = max(
            (p.limits.kv_blocks for p in self.simulation.pools if p.spec.role == "decode"),
            default=0,
        )
        record["saturated_s_per_token"] = saturated
        record["price_per_token"] = (
            pool.spec.price_per_gpu_hour * pool.spec.gpus_per_replica * per_token
        )
        record["transfer_s_per_token"] = spec.kv_bytes_per_token / (link.bandwidth_gb_per_s * 1e9)
        record["transfer_latency_s"] = link.latency_ms * 1e-3
