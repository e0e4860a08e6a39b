"""Pools without a profile: scaled by the rule, with what the pools the LP plans leave them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays, project
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import FloatArray, IntArray, PlanContext
from hrl_planner.planner.rule import RulePolicy

_LAST = 1e-3  # weight of these pools beside those whose replicas are known to be needed


class BlindPools:
    """The pools of a cluster that nobody has a profile of.

    Args:
        context: the cluster, and which pools these are.
        arrays: its limits.

    Attributes:
        index: of these pools, ascending, shape (B,).
    """

    def __init__(self, context: PlanContext, arrays: BudgetArrays) -> None:
        """See the class."""
        self._arrays = arrays
        self.index: NDArray[np.int64] = np.array(sorted(context.blind_pools), np.int64)
        self._rule = RulePolicy()
        self._rule.reset(context)

    def wish(self, observation: ClusterObservation) -> FloatArray:
        """Return the replicas the rule asks for, shape (B,)."""
        if not self.index.size:
            return np.zeros(0)
        return self._rule.decide(observation).replicas[self.index].astype(np.float64)

    def grant(self, wish: FloatArray, least: FloatArray, current: IntArray) -> FloatArray:
        """Return what these pools get of their wish beside the least of the others.

        The rule looks at one pool at a time, so its wishes may not fit. An LP told to hold them
        would have no solution.

        Args:
            wish: replicas, shape (B,).
            least: whole replicas that the others must have, shape (P,).
            current: replicas asked for so far, shape (P,).

        Returns:
            Replicas within the budget, shape (B,).
        """
        if not self.index.size:
            return wish
        desired, weights = least.copy(), np.ones(least.size)
        desired[self.index], weights[self.index] = wish, _LAST
        fitted = project(desired, current, self._arrays, weights=weights)
        return fitted[self.index].astype(np.float64)
