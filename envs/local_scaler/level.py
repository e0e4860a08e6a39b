"""What a local scaler decides: replicas of its pool, within the quota."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.controlled import Run
from hrl_planner.encoding import Layout
from hrl_planner.planner.network import Network
from hrl_planner.planner.policy import Plan
from hrl_planner.planner.scaler import BY_RULE, CHANGES, target_of
from hrl_planner.spec import ClusterSpec


def apply_change(run: Run, pool: int, action: int) -> None:
    """Ask for a pool's replicas; the compiled loop keeps them within quota and budget."""
    if action == BY_RULE:
        return
    row = run.simulation.cluster.pools[pool]
    run.control.override[pool] = target_of(
        action,
        0,
        int(row["target"]),
        float(run.control.quota[pool]),
        int(run.budget.minimum[pool]),
        int(run.budget.maximum[pool]),
    )


class LocalLevel:
    """One pool every local interval, other pools by the rule, quotas by the prior.

    Args:
        prior: the policy that sets quotas, or "random" for quotas drawn within the budget.
        noise: quotas are off the prior's by a factor per pool, drawn once an episode; this is the
            deviation of its log.
    """

    one_pool = True
    shows_plan = False
    scaler: Network | None = None
    penalty = 0.0

    def __init__(self, prior: str = "lp", noise: float = 0.0) -> None:
        """See the class."""
        self._noise = noise
        self.random = prior == "random"
        self.prior: str | None = None if self.random else prior

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return the choice among CHANGES."""
        return spaces.Discrete(len(CHANGES))

    def step_s(self, spec: ClusterSpec) -> float:
        """Return the local interval."""
        return spec.intervals.local_s

    def command(self, run: Run, action: Any) -> None:
        """Set new quotas where they are due, then the pool's replicas."""
        self.renew_quotas(run)
        apply_change(run, run.pool, int(action))

    def hear(self, run: Run, plan: Plan) -> None:
        """Let quotas and the router's weights follow the prior."""
        if run.hear(plan):
            run.next_quotas_s = run.now_s

    def renew_quotas(self, run: Run) -> None:
        """Let the global level act where something is due."""
        if run.now_s < run.next_quotas_s:
            return
        run.next_quotas_s = run.now_s + run.episode.spec.intervals.global_s
        if self.random:
            drawn = run.generator.uniform(0.0, 1.0, run.budget.maximum.size)
            run.set_quotas(drawn * run.budget.maximum, None)
        elif run.plan is not None:
            planned = run.plan.replicas.astype(np.float64)
            if self._noise > 0.0:
                planned *= np.exp(self._noise * run.temperament)
            run.set_quotas(planned, run.plan.flows)


class AllPoolsLevel(LocalLevel):
    """Every pool by the same agent at once, quotas by the prior: how shared weights are trained.

    Args:
        prior: the policy that sets quotas, or "random" for quotas drawn within the budget.
        noise: see `LocalLevel`.
    """

    one_pool = False

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return a choice among CHANGES per pool; those of padded pools do nothing."""
        return spaces.MultiDiscrete([len(CHANGES)] * layout.max_pools)

    def command(self, run: Run, action: Any) -> None:
        """Set new quotas where they are due, then the replicas of all pools."""
        self.renew_quotas(run)
        for pool in range(run.budget.maximum.size):
            apply_change(run, pool, int(action[pool]))
