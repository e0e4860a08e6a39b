"""Tune the rule's thresholds by CMA-ES: a strong baseline that needs no gradient.

One candidate is a vector of `RuleParameters`; its score is the mean over training workloads of
value-weighted SLO attainment minus the GPU price, run in the simulator. Positive thresholds are
searched on a log scale around the shipped defaults, so that one step size fits all of them. Every
candidate meets the same traces and the same start-up luck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import cma
import numpy as np
import yaml
from numpy.typing import NDArray

from agents.thresholds.workloads import training_cases
from envs.score import score
from envs.simulation import SimResult, Simulation
from hrl_planner.planner import loop
from hrl_planner.planner.policy import PlanContext, Policy
from hrl_planner.planner.rule import RuleParameters, RulePolicy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace

_NAMES = tuple(field.name for field in fields(RuleParameters))
_SIGMA = 0.3  # one standard deviation of the first generation: thresholds within 35 %


def parameters_of(x: NDArray[np.float64]) -> RuleParameters:
    """Return the thresholds a point of the search space stands for."""
    defaults = RuleParameters().to_array()
    values = defaults * np.exp(np.clip(x, -3.0, 3.0))
    return RuleParameters(**dict(zip(_NAMES, values.tolist(), strict=True)))


def result_of(spec: ClusterSpec, trace: Trace, policy: Policy, seed: int) -> SimResult:
    """Run one policy over one trace."""
    simulation = Simulation(spec, trace, seed=seed)
    policy.reset(PlanContext(spec=spec, seed=seed, class_id=simulation.class_id))
    loop.run(simulation, policy, trace.duration_s)
    simulation.finish()
    return simulation.result()


def tune(
    spec: ClusterSpec,
    *,
    generations: int,
    population: int,
    seed: int,
    on_generation: Callable[[int, float], None] | None = None,
) -> tuple[RuleParameters, float, float]:
    """Return tuned thresholds, their score and the score of the defaults.

    Args:
        spec: the cluster.
        generations: rounds of the search.
        population: candidates per round.
        seed: of the search and the traces.
        on_generation: told the round and the best score so far.
    """
    cases = training_cases(spec, seed)

    def evaluate(x: NDArray[np.float64]) -> float:
        parameters = parameters_of(x)
        scores = [
            score(result_of(spec, trace, RulePolicy(parameters), seed + k))
            for k, trace in enumerate(cases)
        ]
        return float(np.mean(scores))

    start = np.zeros(len(_NAMES))
    default = evaluate(start)
    best_x, best = start, default
    search = cma.CMAEvolutionStrategy(
        start, _SIGMA, {"popsize": population, "seed": seed + 1, "verbose": -9}
    )
    for generation in range(generations):
        points = [np.asarray(x) for x in search.ask()]
        values = [evaluate(x) for x in points]
        search.tell(points, [-value for value in values])
        if max(values) > best:
            best, best_x = max(values), points[int(np.argmax(values))]
        if on_generation is not None:
            on_generation(generation, best)
    return parameters_of(best_x), best, default


def save(path: Path, parameters: RuleParameters, spec: str, about: str) -> None:
    """Write tuned thresholds as the YAML that the policy `thresholds` reads."""
    values = {name: round(float(getattr(parameters, name)), 4) for name in _NAMES}
    text = yaml.safe_dump({"spec": spec, "parameters": values}, sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {about}\n{text}", encoding="utf-8")
