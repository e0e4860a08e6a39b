"""From an allocator's actions to replicas: corrections of a planner without learning.

Of its plan (`residual`), or of the terms it plans on (`terms_of`): how much of their capacity the
LP may count on, what it costs to let a replica go and how many must stay, in each role, how far to
trust the forecast, and how readily to rebuild. Queues, batching and caches are coarse in the LP's
capacities, a price on moves is a poor picture of what minutes without a replica cost, and a trend
may go on or not: where the terms are wrong a whole plan is, and it is corrected better there than
pool by pool.
Reinforcement learning of an optimiser's parameters instead of its answers: Gros and Zanon,
"Data-driven economic NMPC using reinforcement learning", IEEE TAC 65(2), 2020.
"""

from __future__ import annotations

import numpy as np

from hrl_planner.planner.policy import FloatArray, IntArray, Plan, Terms
from hrl_planner.routing import ROLES

N_TERMS = 5
"""Numbers per role that `terms_of` reads; networks of before rebuilds have one less."""
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


def by_role(outputs: FloatArray, role: IntArray) -> FloatArray:
    """Return the means over the pools of each role, 0 where there is none, shape (roles, K).

    Args:
        outputs: numbers of every pool, shape (P, K).
        role: of every pool, as in `ROLES`, shape (P,).
    """
    means = np.zeros((len(ROLES), outputs.shape[1]))
    for r in range(len(ROLES)):
        if np.any(role == r):
            means[r] = outputs[role == r].mean(axis=0)
    return means


def terms_of(action: FloatArray, role: IntArray) -> Terms:
    """Return the terms an action asks for.

    Args:
        action: of every role the exponents of capacity (base 2), cost of stopping (10), what stays
            (2), outlook and willingness to rebuild (4, the mean of the roles there are), each kept
            within -1 and 1, shape (roles, N_TERMS); the last may be absent.
        role: of every pool, as in `ROLES`, shape (P,).
    """
    bounded = np.clip(action, -1.0, 1.0)
    of_pools = bounded[role]
    present = np.unique(role)
    return Terms(
        capacity=np.exp2(of_pools[:, 0]),
        stop=10.0 ** of_pools[:, 1],
        keep=np.exp2(of_pools[:, 2]),
        outlook=float(4.0 ** bounded[present, 3].mean()),
        rebuild=float(4.0 ** bounded[present, 4:].sum(axis=1).mean()),
    )
