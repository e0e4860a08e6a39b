"""The smallest routers that show the point: a spec, a fleet, workers that exist in name only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hrl_planner.router.chooser import Ask
from hrl_planner.router.classes import Classes, Targets
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.desk import Desk
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.router.fleet import Fleet
from hrl_planner.router.kv import KvIndex, blocks_of_ids
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.spec import ClusterSpec

BLOCK = 16


def aggregated_spec(**router: object) -> ClusterSpec:
    """Return two pools that answer alone: a fast, dear one and a slow, cheap one."""
    pool = {
        "role": "aggregated",
        "gpus_per_replica": 1,
        "max_replicas": 4,
        "startup": {"mean_s": 10},
    }
    return ClusterSpec.from_dict(
        {
            "name": "pair",
            "model": "meta-llama/Meta-Llama-3.1-8B",
            "pools": [
                {
                    **pool,
                    "name": "fast",
                    "gpu_type": "H100",
                    "profile": "llama31_8b__h100_sxm__tp1__vllm",
                    "price_per_gpu_hour": 10.0,
                },
                {
                    **pool,
                    "name": "cheap",
                    "gpu_type": "L40S",
                    "profile": "llama31_8b__l40s__tp1__vllm",
                    "price_per_gpu_hour": 0.5,
                },
            ],
            "budget": {"gpus": {"H100": 4, "L40S": 4}},
            "slo_classes": [
                {
                    "name": "tight",
                    "ttft_ms": 200,
                    "itl_ms": 15,
                    "value": 2.0,
                    "shed_above": 1,
                    "assign": {"share": 0.4},
                },
                {"name": "loose", "ttft_ms": 4000, "itl_ms": 100, "assign": {"share": 0.6}},
            ],
            "router": {"kind": "kv_slo", **router},
        }
    )


def workers(spec: ClusterSpec, each: int = 2) -> tuple[Worker, ...]:
    """Return some workers in every pool, at addresses nobody listens on."""
    return tuple(
        Worker(f"{pool.name}-{i}", pool.name, f"10.{p}.0.{i}:8000")
        for p, pool in enumerate(spec.pools)
        for i in range(each)
    )


def config(**sections: object) -> RouterConfig:
    """Return a config whose spec is not looked at."""
    data: dict[str, object] = {
        "spec": "small",
        "discovery": {"kind": "file", "path": str(Path("workers.yaml"))},
        **sections,
    }
    return RouterConfig.model_validate(data)


class Bench:
    """A desk over a fleet, with everything a test wants to touch."""

    def __init__(
        self,
        spec: ClusterSpec,
        found: Sequence[Worker] | None = None,
        flows: Mapping[str, Mapping[str, float]] | None = None,
        **sections: object,
    ) -> None:
        self.spec = spec
        self.classes = Classes(spec)
        self.fleet = Fleet(spec, self.classes)
        self.index = KvIndex(spec.kv_block_tokens, clock=lambda: 0.0)
        self.metrics = RouterMetrics(self.classes.names)
        self.config = config(**sections)
        self.desk = Desk(self.config, self.fleet, self.index, self.metrics)
        self.apply(workers(spec) if found is None else found, flows or {})

    def apply(
        self, found: Sequence[Worker], flows: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Take over a snapshot as the app does."""
        gone = self.fleet.apply(Snapshot(tuple(found), flows or {}), 0.0)
        for slot in gone:
            self.desk.flights.vacated(slot)
            self.index.drop_worker(slot)
        for place in self.fleet:
            self.index.add_worker(place.slot, place.worker, 10_000)

    def ask(
        self,
        class_name: str,
        isl_tokens: int = 500,
        osl_tokens: int = 100,
        arrived_s: float = 0.0,
        prompt: int = 0,
    ) -> Ask:
        """Return a request of a class; prompts of one number share their prefix."""
        item = self.spec.slo_classes[self.spec.class_index(class_name)]
        ids = [(prompt * 7919 + i) % 30_000 for i in range(isl_tokens)]
        blocks = blocks_of_ids(ids, BLOCK)
        targets = Targets(
            self.spec.class_index(class_name),
            item.ttft_ms * 1e-3,
            item.itl_ms * 1e-3,
            float("inf") if item.shed_above is None else item.shed_above,
        )
        return Ask(blocks, -(-(isl_tokens + osl_tokens) // BLOCK), targets, arrived_s)

    def pool_of(self, seat: object) -> str:
        """Return the pool a seat is in."""
        return str(seat.leg.place.worker.pool)  # type: ignore[attr-defined]

    def load(self, name: str) -> dict[str, int]:
        """Return a worker's load as the rules see it."""
        row = self.fleet.state.load[self.fleet.slot(name)]
        return {f: int(row[f]) for f in ("accepting", "active", "backlog_tokens", "kv_blocks")}
