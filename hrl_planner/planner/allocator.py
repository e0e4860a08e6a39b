"""From an allocator's actions to replicas: a residual on the plan of one without learning."""

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
