"""How far two runs of the same agree: attainment by class, replicas over time.

Trajectories are compared with patience: a planner's clock on the cluster has a phase of its own, so
a step may come up to one local interval sooner or later, and the watcher sees it a moment after. At
a moment the runs agree on a pool when its replicas on the cluster lie between the least and the
most that the simulator has within that time around. What is left is the share of time they do not,
and the longest time in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.agreement.runs import Run, Steps, measured, policy_of, simulated, slowed
from agents.evaluate.metrics import compute
from hrl_planner.localcluster.demo import DemoOptions, DemoResult
from hrl_planner.localcluster.demo_watch import OBJECTS_S
from hrl_planner.spec import ClusterSpec

ATTAINMENT_POINTS = 5.0
_GRID_S = 0.1
_QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Replicas of one pool in both runs.

    Attributes:
        pool: its name.
        field: target or ready.
        apart: share of time at which they differ by more than a local interval explains.
        longest_s: longest time in a row.
        furthest: most replicas they are apart then.
    """

    pool: str
    field: str
    apart: float
    longest_s: float
    furthest: int


@dataclass(frozen=True)
class Agreement:
    """Both runs, and what differs.

    Attributes:
        spec: the cluster.
        policy: what decided, in words.
        cluster: the run on the API server.
        simulator: the simulated one.
        attainment: by class and for "all": percent on the cluster, in the simulator.
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
    attainment: dict[str, tuple[float, float]]
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
    def findings(self) -> list[tuple[bool, str]]:
        """What was promised, whether it holds, and by how much."""
        over = self.cluster.looks_over
        found = [
            (
                over == 0,
                f"GPUs held above the budget in {over} of {self.cluster.looks:,} looks at the pods",
            )
        ]
        for name, (cluster, simulator) in self.attainment.items():
            gap = abs(cluster - simulator)
            words = f"attainment of {name}: {cluster:.1f} % and {simulator:.1f} % simulated"
            found.append((not gap > ATTAINMENT_POINTS, f"{words}, {gap:.1f} points apart"))
        for one in self.trajectories:
            words = f"{one.field} replicas of {one.pool}: the same within {self.tolerance_s:g} s"
            if one.apart:
                words += (
                    f" but for {one.apart:.0%} of the time, {one.longest_s:.1f} s in a row, "
                    f"{one.furthest} apart"
                )
            found.append((one.apart == 0.0, words))
        return found


def compare(demo: DemoResult, spec: ClusterSpec, options: DemoOptions, speed: float) -> Agreement:
    """Simulate what a demonstration ran, and compare.

    Args:
        demo: the run on the cluster.
        spec: its cluster in its own times, before it was played faster.
        options: of the run.
        speed: how many times faster it was played.
    """
    real = measured(demo)
    policy = policy_of(options.policy)
    model = simulated(demo.spec, demo.trace, policy, options.seed, demo.idle_s)
    real, model = slowed(real, spec, speed), slowed(model, spec, speed)
    rows = zip(compute(real.result), compute(model.result), strict=True)
    client = demo.load.client
    return Agreement(
        spec=spec,
        policy=_words(options),
        cluster=real,
        simulator=model,
        attainment={
            str(a["class"]): (100.0 * float(a["attainment"]), 100.0 * float(b["attainment"]))
            for a, b in rows
        },
        trajectories=tuple(
            _trajectory(spec, index, field, real, model)
            for field in ("target", "ready")
            for index in range(len(spec.pools))
        ),
        ttft_excess_ms=_excess_ms(real, model),
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


def _trajectory(spec: ClusterSpec, pool: int, field: str, real: Run, model: Run) -> Trajectory:
    slack_s, end_s = _tolerance_s(spec), real.result.duration_s
    grid = np.arange(0.0, end_s, _GRID_S)
    seen = real.replicas(field).at(grid)[:, pool]
    low, high = envelope(model.replicas(field), pool, grid, slack_s)
    beyond = np.maximum(low - seen, 0) + np.maximum(seen - high, 0)
    apart = beyond > 0
    return Trajectory(
        spec.pools[pool].name,
        field,
        float(apart.mean()),
        _longest(apart) * _GRID_S,
        int(beyond.max(initial=0)),
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
