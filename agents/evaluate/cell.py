"""One run from start to numbers: build the case, let the policy drive, measure.

This is the only place where evaluation touches the simulator, and what `hrl-planner simulate`
runs too: a single run and a cell of a comparison are the same thing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import agents.peers  # noqa: F401  (registers policies)
from agents.bounds import find_transform, relax
from agents.evaluate import curves, metrics
from agents.evaluate.cases import load_case
from agents.evaluate.config import Cell, EvaluationConfig
from agents.evaluate.store import CellData
from envs.score import score
from envs.simulation import SimResult, Simulation
from hrl_planner.errors import PolicyError, SpecError
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner.registry import make_policy
from hrl_planner.workload import assign_classes
from hrl_planner.workload.events import blind_pools
from hrl_planner.workload.scenarios import ScenarioCase

OnProgress = Callable[[Simulation], None]

_WARM_UP_S = 30.0

# To reset one of these is to search in the simulator, or to start processes.
_SLOW_TO_RESET = {"best-static", "lp-lookahead", "dynamo"}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        case: what was asked for.
        result: what came of it; its spec is another one behind an @.
        wall_s: how long the run took.
    """

    case: ScenarioCase
    result: SimResult
    wall_s: float

    @property
    def score(self) -> float:
        """Value attained minus price, at the price of the budget asked for."""
        return score(self.result, self.case.spec)


def split_policy(text: str) -> tuple[str, str | None]:
    """Part `lp-oracle@unlimited` into the policy and the cluster without a limit it runs on."""
    found = re.fullmatch(r"(.+)@([a-z-]+)", text)
    return (found[1], found[2]) if found else (text, None)


def run_case(
    case: ScenarioCase,
    policy_text: str,
    seed: int,
    *,
    grace_s: float,
    on_progress: OnProgress | None = None,
) -> Run:
    """Simulate one case under one policy.

    Args:
        case: spec, trace and events; the policy is told `spec`, the simulator runs `actual`.
        policy_text: as the registry spells it; `@unlimited` or `@zero-startup` behind it runs it
            on the cluster without that limit (`agents.bounds.specs`).
        seed: of start-up times, class assignment and the policy's own draws.
        grace_s: how long after the last arrival requests may still finish.
        on_progress: called after every decision.
    """
    started = time.perf_counter()
    asked = case
    policy_text, without = split_policy(policy_text)
    if without is not None:
        case = relax(case, without)
    policy = make_policy(policy_text)
    simulation = Simulation(case.actual, case.trace, seed=seed, events=case.events)
    policy.reset(_context(case, seed, simulation.class_id))
    loop.run(
        simulation,
        policy,
        case.trace.duration_s,
        None if on_progress is None else lambda _: on_progress(simulation),
    )
    simulation.finish(grace_s)
    return Run(asked, simulation.result(), time.perf_counter() - started)


def _context(case: ScenarioCase, seed: int, class_id: NDArray[np.int16]) -> PlanContext:
    """Return what a policy is told of a case."""
    return PlanContext(
        spec=case.spec,
        seed=seed,
        trace=case.trace,
        class_id=class_id,
        blind_pools=blind_pools(case.events, case.spec),
        events=tuple(case.events),
    )


def run_cell(config: EvaluationConfig, cell: Cell, on_share: Callable[[float], None]) -> CellData:
    """Simulate one cell and reduce it to metrics and curves.

    Args:
        config: the evaluation.
        cell: which run of it.
        on_share: told the share of simulated time that is done.
    """
    case = load_case(
        cell.workload, config.spec, cell.seed, load=config.load, until_s=config.until_s
    )
    run = run_case(
        case,
        cell.policy,
        cell.seed,
        grace_s=config.grace_s,
        on_progress=lambda simulation: on_share(simulation.now_s / case.trace.duration_s),
    )
    return {
        "workload": cell.workload.label,
        "policy": cell.policy,
        "seed": cell.seed,
        "wall_s": run.wall_s,
        "rows": metrics.compute(run.result),
        "curves": curves.reduce_run(run.result),
    }


def compile_simulator(config: EvaluationConfig) -> None:
    """Simulate a few seconds so that the compiled kernel is in the on-disk cache.

    Without this every worker of a first evaluation would compile the same code for itself.
    """
    case = load_case(config.workloads[0], config.spec, 0, load=config.load, until_s=_WARM_UP_S)
    run_case(case, config.policies[0], 0, grace_s=0.0)


def check_policy(text: str) -> None:
    """Find out whether `run_case` could run a policy.

    Raises:
        HrlPlannerError: there is no such policy, or it lacks what it needs.
    """
    text, without = split_policy(text)
    make_policy(text)
    if without is not None:
        find_transform(without)


def check(config: EvaluationConfig) -> None:
    """Find what is wrong with a configuration before hours are spent on it.

    Raises:
        HrlPlannerError: a policy, scenario or trace that does not exist or does not fit the spec,
            or a policy that lacks a file for it.
    """
    for policy in config.policies:
        check_policy(policy)
    if len(set(config.policies)) != len(config.policies):
        raise PolicyError(f"a policy is named twice: {', '.join(config.policies)}")
    labels = [workload.label for workload in config.workloads]
    if len(set(labels)) != len(labels):
        raise SpecError(f"two workloads share a name: {', '.join(labels)}")
    for workload in config.workloads:
        case = load_case(workload, config.spec, 0, load=config.load, until_s=config.until_s)
        class_id = assign_classes(case.trace, case.spec, 0)
        for policy in config.policies:
            _check_policy_on(case, policy, class_id)


def _check_policy_on(case: ScenarioCase, text: str, class_id: NDArray[np.int16]) -> None:
    """Find out whether a policy has what it needs for a cluster: a checkpoint, thresholds."""
    text, without = split_policy(text)
    if {level.partition(":")[0] for level in text.split("+")} & _SLOW_TO_RESET:
        return
    if without is not None:
        case = relax(case, without)
    make_policy(text).reset(_context(case, 0, class_id))
