"""From an allocator's actions to replicas: a residual on the plan of one without learning."""

from __future__ import annotations

import numpy as np

from hrl_planner.planner.policy import FloatArray


def residual(planned: FloatArray, action: FloatArray) -> FloatArray:
    """Return the replicas an action asks for: `planned + a * max(1, planned / 2)`, at least 0."""
    wanted = planned + np.clip(action, -1.0, 1.0) * np.maximum(1.0, planned / 2.0)
    return np.maximum(wanted, 0.0)
