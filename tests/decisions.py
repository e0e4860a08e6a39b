"""Planners that decide without an API server: custom resources, traffic and rounds for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from hrl_planner.control.decide import Allocator, GroupPlan, Scaler
from hrl_planner.control.decision import Decision, Followed
from hrl_planner.control.decision_log import DecisionLog, to_file
from hrl_planner.control.global_planner import GlobalRound
from hrl_planner.control.local_planner import LocalRound
from hrl_planner.control.pods import PodCounts
from hrl_planner.control.pool_list import PoolList
from hrl_planner.kube.convert import budget_of, manifests_of
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.ledger import Settlement
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, Float64Array
from hrl_planner.spec import ClusterSpec


class Traffic:
    """Metrics of a load that grows and falls; a pool's row is of the size a real one has."""

    def __init__(self, peak_rps: float = 60.0, period: int = 40, seed: int = 0) -> None:
        self.peak_rps, self.period = peak_rps, period
        self._rng = np.random.default_rng(seed)
        self.looks = 0

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        self.looks += 1
        load = 0.5 - 0.5 * np.cos(2.0 * np.pi * self.looks / self.period)
        rows = np.stack([self._pool(load, pool.role) for pool in spec.pools])
        classes = np.stack([self._class(load / len(spec.slo_classes)) for _ in spec.slo_classes])
        return rows, classes

    def _pool(self, load: float, role: str) -> Float64Array:
        row = dict.fromkeys(POOL_FIELDS, np.nan)
        row |= {
            "pending": 0.0,
            "arrivals_rps": self.peak_rps * load / 2.0,
            "isl_mean_tokens": 900.0,
            "isl_std_tokens": 400.0,
            "waiting": float(self._rng.integers(0, 2 + int(8 * load))),
            "running": float(self._rng.integers(1, 2 + int(60 * load))),
            "metrics_age_s": 2.0,
        }
        if role != "decode":
            row |= {"ttft_p50_ms": 200.0, "ttft_p90_ms": 300.0 + 900.0 * load}
            row |= {"prefix_hit_rate": 0.25, "prompt_tokens_per_s": 8000.0 * load}
            row |= {"ttft_attainment": 1.0 - 0.2 * load}
        if role != "prefill":
            row |= {"osl_mean_tokens": 200.0, "osl_std_tokens": 90.0, "kv_use": 0.1 + 0.8 * load}
            row |= {"itl_p50_ms": 15.0, "itl_p90_ms": 18.0 + 20.0 * load}
            row |= {"output_tokens_per_s": 900.0 * load, "itl_attainment": 1.0 - 0.1 * load}
        return np.array([row[name] * self._noise() for name in POOL_FIELDS])

    def _class(self, share: float) -> Float64Array:
        row = {
            "arrivals_rps": self.peak_rps * share,
            "isl_mean_tokens": 900.0,
            "isl_std_tokens": 400.0,
            "osl_mean_tokens": 200.0,
            "osl_std_tokens": 90.0,
            "prefix_hit_rate": 0.25,
            "attainment": 1.0 - 0.3 * share,
            "in_system": 30.0 * share,
        }
        return np.array([row[name] * self._noise() for name in CLASS_FIELDS])

    def _noise(self) -> float:
        return float(1.0 - 0.05 * self._rng.random())


class Site:
    """Planners of a spec: what they decide is done at once, and written down.

    Attributes:
        group: may be changed between rounds.
        decisions: all that were made, the newest last.
    """

    def __init__(self, spec: ClusterSpec, log: DecisionLog, **policy: object) -> None:
        targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
        group, *pools = manifests_of(spec, targets)
        group["spec"]["policy"] |= {"mode": "active", **policy}
        self.group = ServingGroup.model_validate(group)
        self.replicas = {pool.name: pool.initial for pool in spec.pools}
        self.quotas = dict(self.replicas)
        self._pools = [WorkerPool.model_validate(pool) for pool in pools]
        self._log, self.now_s = log, 100.0
        self.decisions: list[Decision] = []
        self.restart()

    def restart(self) -> None:
        """Planners with empty memory."""
        traffic = Traffic()
        self._allocator = Allocator(traffic)
        self._scalers = {pool.name: Scaler(traffic) for pool in self._pools}

    def pools(self) -> list[WorkerPool]:
        """The pools as the API server would tell them."""
        return [
            pool.model_copy(
                update={
                    "spec": pool.spec.model_copy(update={"quota": self.quotas[pool.name]}),
                    "status": pool.status.model_copy(
                        update={
                            "desired": self.replicas[pool.name],
                            "ready": self.replicas[pool.name],
                        }
                    ),
                }
            )
            for pool in self._pools
        ]

    def global_round(self) -> GlobalRound:
        plan = self._allocator.plan(self.group, PoolList(tuple(self.pools())), self.now_s)
        self.quotas |= plan.quotas
        return self._written(plan, None)

    def listen(self) -> GlobalRound:
        listed = PoolList(tuple(self.pools()))
        return self._written(None, self._allocator.listen(self.group, listed, self.now_s))

    def _written(self, plan: GroupPlan | None, heard: Decision | None) -> GlobalRound:
        budget, quotas = budget_of(self.group), dict(self.quotas)
        done = GlobalRound("active", plan, heard, quotas, quotas, budget, budget, Settlement(), ())
        if done.decision is not None:
            self.decisions.append(done.decision)
        self._log.write(self.group.metadata.name, done, 0.01)
        return done

    def local_round(self, name: str) -> LocalRound:
        want = self._scalers[name].want(self.group, PoolList(tuple(self.pools())), name, self.now_s)
        before, self.replicas[name] = self.replicas[name], min(want.replicas, self.quotas[name])
        now, gpus = self.replicas[name], 2 * self.replicas[name]
        done = LocalRound(
            self.group.metadata.name, "active", want.replicas, want.reason, "", (),
            self.quotas[name], before, now, PodCounts(now), gpus, want.decision,
        )  # fmt: skip
        if want.decision is not None:
            self.decisions.append(want.decision)
        self._log.write(name, done, 0.01)
        return done

    def follow(self, name: str) -> None:
        """Hear and decide as a standby does at both levels."""
        group, listed = self.group.metadata.name, PoolList(tuple(self.pools()))
        heard = self._allocator.listen(self.group, listed, self.now_s)
        self._log.write(group, Followed(group, heard), 0.01)
        want = self._scalers[name].want(self.group, listed, name, self.now_s)
        self._log.write(name, Followed(group, want.decision), 0.01)

    def run(self, rounds: int) -> None:
        for turn in range(rounds):
            if turn % 6 == 0:
                self.global_round()
            else:
                self.listen()
            for name in self.replicas:
                self.local_round(name)
            self.now_s += 10.0


@contextmanager
def opened(path: Path, spec: ClusterSpec, by: str = "a", **policy: object) -> Iterator[Site]:
    """A site that logs into a file, with a clock of its own."""
    made: list[Site] = []

    def now_s() -> float:
        return 1.7e9 + (made[0].now_s if made else 0.0)

    log = DecisionLog(to_file(path), by, "default", now_s)
    made.append(Site(spec, log, **policy))
    try:
        yield made[0]
    finally:
        log.close()


MakeSite = Callable[..., Site]


@pytest.fixture
def site() -> Iterator[MakeSite]:
    """Makes sites as `opened` does."""
    with ExitStack() as stack:
        yield lambda *args, **policy: stack.enter_context(opened(*args, **policy))
