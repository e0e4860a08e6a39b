"""How far two runs of the same agree: attainment by class, replicas over time.

Trajectories are compared with patience: a planner's clock on the cluster has a phase of its own, so
a step may come up to one local interval sooner or later, and the watcher sees it a moment after. At
a moment the runs agree on a pool when its replicas on the cluster lie between the least and the
most that the simulator has within that time around. What is left is the share of time they do not,
and the longest time in a row.

Where they do not, the simulator is asked how far it agrees with itself: it runs again with metrics
taken at other instants of a scrape interval, which on a cluster are anybody's. A policy that acts
on what it sees at one moment, as a horizontal autoscaler does on queues, may do something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agents.agreement.measured import measured
from agents.agreement.runs import Run, Steps, slowed
from agents.agreement.simulated import simulated
from agents.evaluate.metrics import compute
from hrl_planner.kube.resources import PolicySpec
from hrl_planner.localcluster.demo import DemoOptions, DemoResult
from hrl_planner.localcluster.demo_watch import OBJECTS_S
from hrl_planner.spec import ClusterSpec

ATTAINMENT_POINTS = 5.0
_GRID_S = 0.1
_PHASES = (0.0, 0.25, 0.5, 0.75)  # of a scrape interval
_QUANTILES = (5, 25, 50, 75, 95)


# agrees; differs, but no more than the simulator from itself; differs.
Verdict = Literal["agrees", "spread", "differs"]


@dataclass(frozen=True, slots=True)
class Attainment:
    """Percent of a class's requests within their targets.

    Attributes:
        cluster: as clients measured.
        simulator: as simulated.
        low: least of the simulator's runs.
        high: most of them.
    """

    cluster: float
    simulator: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Whether both are within the tolerance."""
        if not abs(self.cluster - self.simulator) > ATTAINMENT_POINTS:
            return "agrees"
        beyond = max(self.low - self.cluster, self.cluster - self.high)
        return "differs" if beyond > ATTAINMENT_POINTS else "spread"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Replicas of one pool in both runs.

    Attributes:
        pool: its name.
        field: target or ready.
        apart: share of time at which they differ by more than a local interval explains.
        longest_s: longest time in a row.
        furthest: most replicas they are apart then.
        beyond: share of time at which the cluster differs from all the simulator's runs.
    """

    pool: str
    field: str
    apart: float
    longest_s: float
    furthest: int
    beyond: float

    @property
    def verdict(self) -> Verdict:
        """Whether they are ever apart."""
        return "agrees" if not self.apart else "differs" if self.beyond else "spread"


@dataclass(frozen=True)
class Agreement:
    """Both runs, and what differs.

    Attributes:
        spec: the cluster.
        policy: what decided, in words.
        cluster: the run on the API server.
        simulator: the simulated one.
        attainment: by class and for "all".
        trajectories: per pool and field.
        ttft_excess_ms: how much later than simulated the first token of a request came, by quantile
            in percent; of requests that both runs answered.
        accounts: service account by pod of planners and router.
        client_late_ms: 99th percentile of how late clients sent or read, machine's own fault.
        speed: how many times faster it was played.
    """

    spec: ClusterSpec
    policy: str
    cluster: Run
    simulator: Run
    attainment: dict[str, Attainment]
    trajectories: tuple[Trajectory, ...]
    ttft_excess_ms: dict[int, float]
    accounts: dict[str, str]
    client_late_ms: float
    speed: float

    @property
    def tolerance_s(self) -> float:
        """How much sooner or later a step may come."""
        return _tolerance_s(self.spec)

    @property
    def findings(self) -> list[tuple[Verdict, str]]:
        """What was asked for, whether it holds, and by how much."""
        over, looks = self.cluster.looks_over, self.cluster.looks
        words = f"GPUs held above the budget in {over} of {looks:,} looks at the pods"
        found: list[tuple[Verdict, str]] = [("differs" if over else "agrees", words)]
        for name, one in self.attainment.items():
            gap = abs(one.cluster - one.simulator)
            words = (
                f"attainment of {name}: {one.cluster:.1f} % and {one.simulator:.1f} % simulated, "
                f"{gap:.1f} points apart"
            )
            if one.high > one.low:
                words += f" (simulated with other clocks {one.low:.1f} to {one.high:.1f} %)"
            found.append((one.verdict, words))
        for step in self.trajectories:
            words = f"{step.field} replicas of {step.pool}: the same within {self.tolerance_s:g} s"
            if step.apart:
                words += (
                    f" but for {step.apart:.0%} of the time, {step.longest_s:.1f} s in a row, "
                    f"{step.furthest} apart; unlike any simulated run for {step.beyond:.0%}"
                )
            found.append((step.verdict, words))
        return found


def compare(demo: DemoResult, spec: ClusterSpec, options: DemoOptions, speed: float) -> Agreement:
    """Simulate what a demonstration ran, and compare.

    Args:
        demo: the run on the cluster.
        spec: its cluster in its own times, before it was played faster.
        options: of the run.
        speed: how many times faster it was played.
    """
    real = slowed(measured(demo), spec, speed)
    scrape_s = demo.spec.intervals.scrape_s
    models = [
        slowed(
            simulated(
                demo.spec,
                demo.trace,
                PolicySpec.model_validate(options.policy),
                options.seed,
                demo.idle_s + phase * scrape_s,
            ),
            spec,
            speed,
        )
        for phase in _PHASES
    ]
    client = demo.load.client
    return Agreement(
        spec=spec,
        policy=_words(options),
        cluster=real,
        simulator=models[0],
        attainment=_attainments(real, models),
        trajectories=tuple(
            _trajectory(spec, index, field, real, models)
            for field in ("target", "ready")
            for index in range(len(spec.pools))
        ),
        ttft_excess_ms=_excess_ms(real, models[0]),
        accounts=demo.accounts,
        client_late_ms=max(client.lag_ms, client.stall_ms),
        speed=speed,
    )


def _excess_ms(real: Run, model: Run) -> dict[int, float]:
    """Requests are the same and in the same order in both runs."""
    later = 1e3 * (real.result.ttft_s - model.result.ttft_s)
    answered = later[~np.isnan(later)]
    if not answered.size:
        return {}
    return {q: round(float(np.percentile(answered, q)), 1) for q in _QUANTILES}


def _words(options: DemoOptions) -> str:
    policy = options.policy
    if policy.get("checkpoint"):
        return f"checkpoint {policy['checkpoint']}"
    return f"{policy['allocator']} with {policy['scaler']}"


def _tolerance_s(spec: ClusterSpec) -> float:
    return spec.intervals.local_s + OBJECTS_S


def _attainments(real: Run, models: list[Run]) -> dict[str, Attainment]:
    rows = [compute(run.result) for run in (real, *models)]
    found = {}
    for of_class in zip(*rows, strict=True):
        cluster, *simulator = (100.0 * float(row["attainment"]) for row in of_class)
        low, high = min(simulator), max(simulator)
        found[str(of_class[0]["class"])] = Attainment(cluster, simulator[0], low, high)
    return found


def _trajectory(
    spec: ClusterSpec, pool: int, field: str, real: Run, models: list[Run]
) -> Trajectory:
    slack_s, end_s = _tolerance_s(spec), real.result.duration_s
    grid = np.arange(0.0, end_s, _GRID_S)
    seen = real.replicas(field).at(grid)[:, pool]
    bounds = [envelope(model.replicas(field), pool, grid, slack_s) for model in models]
    low, high = bounds[0]
    distance = np.maximum(low - seen, 0) + np.maximum(seen - high, 0)
    apart = distance > 0
    least = np.min([low for low, _ in bounds], axis=0)
    most = np.max([high for _, high in bounds], axis=0)
    return Trajectory(
        spec.pools[pool].name,
        field,
        float(apart.mean()),
        _longest(apart) * _GRID_S,
        int(distance.max(initial=0)),
        float(((seen < least) | (seen > most)).mean()),
    )


def envelope(
    steps: Steps, pool: int, grid: np.ndarray, slack_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the most of a step function within `slack_s` of each time."""
    offsets = np.arange(-slack_s, slack_s + 0.5 * _GRID_S, _GRID_S)
    around = np.stack([steps.at(grid + offset)[:, pool] for offset in offsets])
    return around.min(axis=0), around.max(axis=0)


def _longest(flags: np.ndarray) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
