"""Pools without a profile: scaled by the rule, within a budget they share with those planned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays, project
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import FloatArray, IntArray, PlanContext
from hrl_planner.planner.rule import RulePolicy


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

    def fitted(self, low: FloatArray, current: IntArray) -> FloatArray:
        """Return the least replicas of all pools, made to fit the budget where these pools ask.

        The rule looks at one pool at a time, so what it asks for may not fit beside what the other
        pools keep, and an LP told to hold both would have no solution. Both give way, each by as
        many GPUs as the projection onto the budget takes.

        Args:
            low: whole replicas, of these pools what the rule asks for, shape (P,).
            current: replicas asked for so far, shape (P,).

        Returns:
            Replicas, shape (P,); `low` itself where every pool has a profile.
        """
        if not self.index.size:
            return low
        return project(low, current, self._arrays).astype(np.float64)
