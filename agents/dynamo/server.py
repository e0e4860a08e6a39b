"""Dynamo's planners and arbiters in simulated time, behind a pipe of JSON lines.

Runs under an interpreter that has `ai-dynamo` (`make dynamo-venv`), which is not the project's own,
so this file imports nothing of the project:

    dynamo-venv/bin/python agents/dynamo/server.py

Theirs, unmodified: `PlannerConfig`; `OrchestratorEngineAdapter`, the pipeline of a local planner,
driven as Dynamo's offline replay drives it; the bootstrap of its performance model from a profile
directory; `Orchestrator`, the arbiter, on an injected clock. Ours: `SimulatedCapacity`, which
stands for Kubernetes, and the loop that a planner process and the arbiter's endpoint are.

A request is `{"start": deployment}`, `{"tick": {...}, "session": n}` or `{"end": n}`; an answer
has `error` where it failed. Sessions are independent clusters.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DYN_LOG", "error")

from dynamo.common.forward_pass_metrics import (
    ForwardPassMetrics,
    QueuedRequestMetrics,
    ScheduledRequestMetrics,
)
from dynamo.global_planner.capacity_manager import CapacityManager, PoolSpec
from dynamo.global_planner.orchestrator import Orchestrator
from dynamo.planner.config.defaults import SubComponentType, TargetReplica
from dynamo.planner.config.planner_config import PlannerConfig
from dynamo.planner.core.types import (
    EngineCapabilities,
    FpmObservations,
    TickInput,
    TrafficObservation,
    WorkerCapabilities,
    WorkerCounts,
)
from dynamo.planner.errors import DynamoGraphDeploymentNotReadyError
from dynamo.planner.monitoring.perf_metrics import fetch_pre_deployment_metrics
from dynamo.planner.monitoring.worker_info import WorkerInfo
from dynamo.planner.plugins.clock import VirtualClock
from dynamo.planner.plugins.orchestrator.engine_adapter import OrchestratorEngineAdapter

Json = dict[str, Any]


class Pool:
    """One deployment: what Kubernetes knows of it, and its local planner.

    Attributes:
        name: of the pool, the deployment and its one component.
        role: `prefill` or `decode`; Dynamo calls an aggregated worker a decode worker.
        replicas: asked for.
        ready: serving.
    """

    def __init__(self, description: Json) -> None:
        self.name: str = description["name"]
        self.gpu_type: str = description["gpu_type"]
        self.gpus_per_replica: int = description["gpus_per_replica"]
        self.replicas = 0
        self.ready = 0
        self._config = PlannerConfig(**description["config"])
        self.role = "prefill" if self._config.mode == "prefill" else "decode"
        capabilities = EngineCapabilities(**description["capabilities"])
        self._engine = OrchestratorEngineAdapter(
            self._config, WorkerCapabilities(**{self.role: capabilities}), clock=VirtualClock()
        )
        self._profile: Json | None = description["profile"]
        self._tick: Any = None

    @property
    def stable(self) -> bool:
        """Whether every replica asked for serves and no other does."""
        return self.replicas == self.ready

    async def bootstrap(self) -> None:
        """Seed the performance model and schedule the first tick, as a planner process does."""
        fpms = None
        if self._profile is not None:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / f"selected_{self.role}_interpolation"
                place.mkdir()
                arrays = {name: np.array(values) for name, values in self._profile.items()}
                np.savez(place / "raw_data.npz", allow_pickle=False, **arrays)
                fpms = await fetch_pre_deployment_metrics(
                    None, self.name, WorkerInfo(), folder, SubComponentType(self.role)
                )
        await self._engine.bootstrap_from_fpms(**{f"{self._config.mode}_fpms": fpms})
        self._tick = self._engine.initial_tick(0.0)

    async def decide(self, now_s: float, state: Json) -> tuple[int | None, Json]:
        """Run the tick that is due, if one is; return the replicas it asks for and why."""
        if now_s < self._tick.at_s - 1e-6:
            return None, {}
        traffic = state["traffic"] if self._tick.need_traffic_metrics else None
        counts = {
            f"ready_num_{self.role}": self.ready,
            f"expected_num_{self.role}": self.ready if self.stable else None,
            f"{self.role}_scaling_in_progress": not self.stable,
        }
        effects = await self._engine.tick(
            self._tick,
            TickInput(
                now_s=now_s,
                traffic=None if traffic is None else TrafficObservation(**traffic),
                worker_counts=WorkerCounts(**counts),
                fpm_observations=FpmObservations(**{self.role: self._passes(state["engines"])}),
            ),
        )
        self._tick = effects.next_tick
        wanted = effects.scale_to and getattr(effects.scale_to, f"num_{self.role}")
        return wanted, self._why(effects.diagnostics)

    def _passes(self, engines: list[Json]) -> dict[tuple[str, int], ForwardPassMetrics] | None:
        passes = {}
        for k, engine in enumerate(engines):
            worker = f"{self.name}-{k}"
            passes[worker, 0] = ForwardPassMetrics(
                worker_id=worker,
                wall_time=engine["wall_time"],
                scheduled_requests=ScheduledRequestMetrics(**engine["scheduled"]),
                queued_requests=QueuedRequestMetrics(**engine["queued"]),
            )
        return passes or None

    def _why(self, diagnostics: Any) -> Json:
        return {
            "load": diagnostics.load_decision_reason,
            "throughput": diagnostics.throughput_decision_reason,
            "at_least": getattr(diagnostics, f"throughput_lower_bound_{self.role}"),
            "engine_rps": getattr(diagnostics, f"engine_rps_{self.role}"),
            "ttft_ms": diagnostics.estimated_ttft_ms,
            "itl_ms": diagnostics.estimated_itl_ms,
        }

    async def close(self) -> None:
        """Release the planner."""
        await self._engine.shutdown()


class SimulatedCapacity(CapacityManager):  # type: ignore[misc]
    """The pools of one GPU type as an arbiter sees and scales them: where Kubernetes would be."""

    def __init__(self, pools: list[Pool]) -> None:
        self._pools = {pool.name: pool for pool in pools}

    def ensure_participant(
        self, participant_id: str, caller_name: str, namespace: str, deployment_name: str
    ) -> None:
        """Do nothing: every pool is known from the start."""

    def participant_exists(self, participant_id: str) -> bool:
        """Return whether there is such a pool."""
        return participant_id in self._pools

    def observe(self, require_complete: bool = False) -> dict[str, dict[str, PoolSpec]]:
        """Return replicas asked for and GPUs per replica of every pool."""
        return {
            pool.name: {
                pool.role: PoolSpec(pool.role, pool.replicas, pool.gpus_per_replica, pool.name)
            }
            for pool in self._pools.values()
        }

    async def scale(
        self, participant_id: str, targets: list[TargetReplica], blocking: bool
    ) -> None:
        """Set the replicas asked for.

        As Dynamo's Kubernetes connector, refuse a deployment that is not settled, unless start-ups
        alone are pending and the request takes them back.
        """
        pool = self._pools[participant_id]
        for target in targets:
            wanted = target.desired_replicas
            taken_back = pool.ready < pool.replicas and wanted <= pool.ready
            if not pool.stable and not taken_back:
                raise DynamoGraphDeploymentNotReadyError(deployment_name=pool.name)
            pool.replicas = wanted

    def current_replicas(self, participant_id: str) -> dict[str, int]:
        """Return replicas asked for, by role."""
        pool = self._pools[participant_id]
        return {pool.role: pool.replicas}


class Session:
    """One cluster: a local planner per pool, an arbiter per GPU type."""

    def __init__(self, description: Json) -> None:
        self._now_s = 0.0
        self._ticks = 0
        self._pools = [Pool(pool) for pool in description["pools"]]
        self._arbiters = {
            gpu_type: Orchestrator(
                SimulatedCapacity([pool for pool in self._pools if pool.gpu_type == gpu_type]),
                None,
                max_total_gpus=gpus,
                intent_cache_ttl_seconds=description["intent_ttl_s"],
                now=lambda: self._now_s,
            )
            for gpu_type, gpus in description["gpus"].items()
        }

    async def bootstrap(self) -> None:
        """Bring up every planner."""
        for pool in self._pools:
            await pool.bootstrap()

    async def tick(self, now_s: float, states: list[Json]) -> Json:
        """Let every planner that is due decide, and its arbiter after it.

        Planners are processes without a common clock: whoever asks first gets the GPUs. They take
        turns in being first.
        """
        self._now_s = now_s
        for pool, state in zip(self._pools, states, strict=True):
            pool.replicas, pool.ready = state["replicas"], state["ready"]
        why: list[Json] = [{} for _ in self._pools]
        for turn in range(len(self._pools)):
            index = (self._ticks + turn) % len(self._pools)
            pool = self._pools[index]
            wanted, why[index] = await pool.decide(now_s, states[index])
            if wanted is not None:
                why[index] |= {"wanted": wanted, "answer": await self._submit(pool, wanted)}
        self._ticks += 1
        return {"replicas": [pool.replicas for pool in self._pools], "why": why}

    async def _submit(self, pool: Pool, wanted: int) -> str:
        """Ask the arbiter, as its endpoint `scale_request` does; return its answer."""
        arbiter = self._arbiters[pool.gpu_type]
        target = TargetReplica(
            sub_component_type=SubComponentType(pool.role),
            component_name=pool.name,
            desired_replicas=wanted,
        )
        arbiter.register(pool.name, pool.name, pool.gpu_type, pool.name)
        try:
            outcome = await arbiter.submit(
                pool.name,
                [target],
                blocking=False,
                deployment_name=pool.name,
                caller_name=pool.name,
            )
        except DynamoGraphDeploymentNotReadyError:
            return "rejected"
        return str(outcome.status.value)

    async def close(self) -> None:
        """Release every planner."""
        for pool in self._pools:
            await pool.close()


class Server:
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._started = 0

    async def answer(self, request: Json) -> Json:
        """Do what is asked."""
        if "start" in request:
            session = Session(request["start"])
            await session.bootstrap()
            self._started += 1
            self._sessions[self._started] = session
            return {"session": self._started}
        if "end" in request:
            await self._sessions.pop(request["end"]).close()
            return {}
        tick = request["tick"]
        return await self._sessions[request["session"]].tick(tick["now_s"], tick["pools"])


def main() -> None:
    """Serve until the pipe closes."""
    # Whatever Dynamo prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    server = Server()
    loop = asyncio.new_event_loop()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = loop.run_until_complete(server.answer(json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
