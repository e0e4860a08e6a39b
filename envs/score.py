"""One number for a finished run: value attained minus price, as the reward weighs them.

Unlike the reward's sum it has no churn in it, and it can be normalised to another budget than the
one the run had: bounds with more GPUs are compared at the price of the budget they are bounds for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import price_per_hour

if TYPE_CHECKING:
    from envs.simulation import SimResult, Simulation
    from hrl_planner.spec import ClusterSpec


def value_share(result: SimResult) -> float:
    """Return the value-weighted share of offered requests that were attained."""
    value = np.array([c.value for c in result.spec.slo_classes])[result.class_id]
    return float((value * result.attained).sum() / max(value.sum(), 1e-9))


def cost_share(result: SimResult, budget_of: ClusterSpec | None = None) -> float:
    """Return the price of the GPU time over that of a whole budget throughout.

    Args:
        result: the finished run.
        budget_of: the cluster whose budget counts; absent, the run's own.
    """
    whole = price_per_hour(budget_of or result.spec) * result.duration_s
    return _cost(result.spec, result.gpu_seconds) / max(whole, 1e-9)


def _cost(spec: ClusterSpec, gpu_seconds: NDArray[np.float64]) -> float:
    price = np.array([pool.price_per_gpu_hour for pool in spec.pools])
    return float(price @ gpu_seconds)


def score(result: SimResult, budget_of: ClusterSpec | None = None) -> float:
    """Return value share minus weighted cost share; arguments as in `cost_share`."""
    weight = (budget_of or result.spec).reward.gpu_price_weight
    return value_share(result) - weight * cost_share(result, budget_of)


def weighed_so_far(simulation: Simulation) -> float:
    """Return the score of a run under way: of all its requests, those attained by now.

    Runs of the same cluster and trace are compared at the same moment; requests that have still to
    finish count for neither.
    """
    spec = simulation.spec
    value = np.array([c.value for c in spec.slo_classes])
    offered = float(value[simulation.class_id].sum())
    attained = float(value @ simulation.cluster.classes["attained"])
    whole = price_per_hour(spec) * simulation.trace.duration_s
    cost = _cost(spec, simulation.gpu_seconds()) / max(whole, 1e-9)
    return attained / max(offered, 1e-9) - spec.reward.gpu_price_weight * cost
