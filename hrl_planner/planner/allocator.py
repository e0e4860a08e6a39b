"""From an allocator's actions to replicas: a residual on the plan of one without learning.

On what the plan says (`residual`), or on what it is made of (`capacity_factors`): how much of each
pool's capacity the LP may count on. Queues, batching and shedding are coarse in the capacities;
where they are wrong a whole plan is, and it is corrected better where the mistake is than pool by
pool. Reinforcement learning of an optimiser's parameters instead of its answers: Gros and Zanon,
"Data-driven economic NMPC using reinforcement learning", IEEE TAC 65(2), 2020.
"""

from __future__ import annotations

import numpy as np

from hrl_planner.planner.policy import FloatArray, Plan

_WITHIN = 0.49  # of half a replica: what rounds to the plan


def unrounded(plan: Plan) -> FloatArray:
    """Return the replicas a plan was rounded from, where it says so, shape (P,).

    Kept within half a replica of the plan, so that rounding gives the plan again. Residuals on
    whole numbers would do nothing below half a replica, and a policy that learns in small steps
    would never see them do anything.
    """
    whole = plan.replicas.astype(np.float64)
    if plan.advice is None:
        return whole
    return whole + np.clip(plan.advice.wish - whole, -_WITHIN, _WITHIN)


def residual(planned: FloatArray, action: FloatArray) -> FloatArray:
    """Return the replicas an action asks for: `planned + a * max(1, planned / 2)`, at least 0."""
    wanted = planned + np.clip(action, -1.0, 1.0) * np.maximum(1.0, planned / 2.0)
    return np.maximum(wanted, 0.0)


def capacity_factors(action: FloatArray) -> FloatArray:
    """Return the factors on each pool's planned capacity an action asks for: 2 to the action."""
    return np.exp2(np.clip(action, -1.0, 1.0))
