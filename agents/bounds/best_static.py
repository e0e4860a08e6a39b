"""The best fixed replicas in hindsight: what a cluster could have done without planning.

Candidates are the answers of the clairvoyant LP under the condition that replicas never change,
with several shares of capacity kept free (queues need room that a fluid does not), the replicas the
spec begins with, and the equal split. Each is run in the simulator on the very trace, start-up luck
and events that the policy will meet; from the best, moves of one replica are tried as long as they
improve the score or until the simulations allowed are used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.bounds.clairvoyant import static_plan
from envs.score import score
from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays, project
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner import loop
from hrl_planner.planner.policy import IntArray, Plan, PlanContext
from hrl_planner.planner.static import StaticPolicy, equal_split
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace

SIMULATIONS = 24
_HEADROOMS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6)
_INSIST = 1e3  # weight of the pool that a move raises, against those that make room for it


@dataclass(frozen=True)
class StaticSearch:
    """What the search found.

    Attributes:
        replicas: the best, shape (P,).
        score: theirs, as `envs.score.score` counts it.
        simulations: how many were run.
    """

    replicas: IntArray
    score: float
    simulations: int


def best_static(
    spec: ClusterSpec,
    trace: Trace,
    class_id: NDArray[np.int16],
    *,
    events: Sequence[ClusterEvent] = (),
    seed: int = 0,
    simulations: int = SIMULATIONS,
) -> StaticSearch:
    """Search fixed replicas for one run.

    Args:
        spec: the cluster.
        trace: the requests.
        class_id: SLO class of each, shape (N,).
        events: what else happens in the run.
        seed: of its start-up times.
        simulations: most runs.
    """
    arrays = BudgetArrays.from_spec(spec)
    scores: dict[tuple[int, ...], float] = {}

    def tried(replicas: IntArray) -> float:
        key = tuple(replicas.tolist())
        if key not in scores:
            scores[key] = _run(spec, trace, class_id, events, seed, replicas)
        return scores[key]

    initial = np.array([pool.initial for pool in spec.pools], np.int64)
    candidates = [initial, project(equal_split(spec), initial, arrays)]
    for headroom in _HEADROOMS:
        plan = static_plan(spec, trace, class_id, headroom)
        candidates.append(project(np.ceil(plan - 0.15), initial, arrays))
    best = max(candidates[:simulations], key=tried)
    moves = [(i, step) for step in (1, -1) for i in range(initial.size)]
    since_better = 0
    while moves and since_better < len(moves) and len(scores) < simulations:
        i, step = moves[0]
        moved = _move(best, i, step, arrays)
        if tried(moved) > tried(best):
            best, since_better = moved, 0  # and the same move again
        else:
            moves.append(moves.pop(0))
            since_better += 1
    return StaticSearch(best, tried(best), len(scores))


def _move(replicas: IntArray, pool: int, step: int, arrays: BudgetArrays) -> IntArray:
    """Return the replicas with one more or fewer in a pool; others make room where they must."""
    desired = replicas.astype(np.float64)
    desired[pool] += step
    weights = np.ones(replicas.size)
    weights[pool] = _INSIST
    return project(desired, replicas, arrays, weights=weights)


def _run(
    spec: ClusterSpec,
    trace: Trace,
    class_id: NDArray[np.int16],
    events: Sequence[ClusterEvent],
    seed: int,
    replicas: IntArray,
) -> float:
    simulation = Simulation(spec, trace, seed=seed, events=events, class_id=class_id)
    policy = StaticPolicy(replicas=replicas)
    policy.reset(PlanContext(spec))
    loop.run(simulation, policy, trace.duration_s)
    simulation.finish()
    return score(simulation.result())


class BestStaticPolicy:
    """Holds the replicas that were best in hindsight.

    Args:
        simulations: most runs of the search.
    """

    name = "best-static"

    def __init__(self, simulations: int = SIMULATIONS) -> None:
        """See the class."""
        if simulations < 1:
            raise PolicyError(f"policy best-static: simulations {simulations} must be at least 1")
        self.interval_s = 60.0
        self._simulations = simulations
        self._static = StaticPolicy()

    def reset(self, context: PlanContext) -> None:
        """Search on the trace the policy will meet."""
        if context.trace is None or context.class_id is None:
            raise PolicyError("policy best-static: needs the trace it runs on; none was given")
        found = best_static(
            context.spec,
            context.trace,
            context.class_id,
            events=context.events,
            seed=context.seed,
            simulations=self._simulations,
        )
        self._static = StaticPolicy(replicas=found.replicas)
        self._static.reset(context)
        self.interval_s = self._static.interval_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer the replicas."""
        return self._static.decide(observation)
