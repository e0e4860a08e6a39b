"""The same decision in another form: a few replicas more or less than planned, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.controlled import Run
from envs.global_allocator.level import GlobalLevel
from hrl_planner.encoding import Layout
from hrl_planner.planner.moves import Room, apply_moves
from hrl_planner.planner.network import Network


class MovesLevel(GlobalLevel):
    """Quotas for all pools: the prior's plan after up to so many moves of one replica.

    A move that the budget or the moves before do not allow does nothing, see
    `hrl_planner.planner.moves`; a policy that masks never asks for one.

    Args:
        prior: the policy whose plan is changed.
        scaler: the local planner; None for the rule.
        penalty: see `GlobalLevel`.
        moves: most moves of a decision.
    """

    def __init__(
        self,
        prior: str = "lp",
        scaler: Network | None = None,
        penalty: float = 0.0,
        moves: int = 6,
    ) -> None:
        """See the class."""
        super().__init__(prior, scaler, penalty)
        self.moves = moves

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return the moves: 0 stops, 1 to P adds a replica to a pool, P + 1 to 2 P removes one."""
        return spaces.MultiDiscrete([1 + 2 * layout.max_pools] * self.moves)

    def command(self, run: Run, action: Any) -> None:
        """Set quotas and the router's weights."""
        plan = run.plan
        assert plan is not None
        room = Room.of(run.scales.limits, plan.replicas / run.scales.max_replicas)
        max_pools = int(run.control.clock[0]["max_pools"])
        moves = np.asarray(action, np.int64).tolist()
        run.set_quotas(apply_moves(room, moves, max_pools), plan.flows)
