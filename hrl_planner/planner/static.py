"""A fixed number of replicas, whatever happens: what a cluster does without a planner."""

from __future__ import annotations

import numpy as np

from hrl_planner.budget import BudgetArrays, project
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import FloatArray, IntArray, Plan, PlanContext
from hrl_planner.spec import ClusterSpec

_SPLITS = ("equal", "initial")


def equal_split(spec: ClusterSpec) -> FloatArray:
    """Return each pool's replicas, shape (P,), if the GPUs of a type are shared equally."""
    sharing = [sum(p.gpu_type == pool.gpu_type for p in spec.pools) for pool in spec.pools]
    return np.array(
        [
            spec.budget.gpus[pool.gpu_type] / n / pool.gpus_per_replica
            for pool, n in zip(spec.pools, sharing, strict=True)
        ]
    )


class StaticPolicy:
    """Holds one split of the budget.

    Args:
        split: `equal` gives every pool the same number of GPUs of its type, `initial` keeps the
            replicas the spec starts with.
        replicas: replicas per pool, which overrides `split`.
    """

    name = "static"

    def __init__(self, split: str = "equal", replicas: IntArray | None = None) -> None:
        """See the class."""
        if split not in _SPLITS:
            raise PolicyError(
                f"policy static, split: unknown {split!r}; one of {', '.join(_SPLITS)}"
            )
        self.interval_s = 60.0
        self._split = split
        self._given = replicas
        self._replicas = np.zeros(0, np.int64)

    def reset(self, context: PlanContext) -> None:
        """Fix the split for a spec."""
        spec = context.spec
        self.interval_s = spec.intervals.global_s
        initial = np.array([pool.initial for pool in spec.pools], np.int64)
        if self._given is not None:
            self._replicas = self._given
        elif self._split == "initial":
            self._replicas = initial
        else:
            self._replicas = project(equal_split(spec), initial, BudgetArrays.from_spec(spec))

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer the split."""
        return Plan(self._replicas, reason="static split")
