"""The same decision in a third form: the terms on which the prior plans."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.controlled import Run
from envs.global_allocator.level import GlobalLevel
from hrl_planner.capacity import CapacityModel
from hrl_planner.encoding import Layout
from hrl_planner.planner.allocator import N_TERMS, terms_of
from hrl_planner.planner.policy import Terms
from hrl_planner.routing import ROLES


class TermsLevel(GlobalLevel):
    """Quotas for all pools: what the prior plans on other terms.

    Zeros everywhere are the prior's own plan, see `hrl_planner.planner.allocator.terms_of`.
    """

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return `N_TERMS` numbers in [-1, 1] per role; those of roles without pools do nothing."""
        return spaces.Box(-1.0, 1.0, (len(ROLES), N_TERMS), np.float32)

    def terms(self, run: Run, action: Any) -> Terms | None:
        """Return the terms an action asks for; None for zeros, which are the prior's own."""
        wanted = np.asarray(action, np.float64)
        role = CapacityModel.from_spec(run.episode.spec).role
        return terms_of(wanted, role) if wanted.any() else None

    def command(self, run: Run, action: Any) -> None:
        """Set quotas and the router's weights."""
        plan = run.plan
        assert plan is not None
        run.set_quotas(plan.replicas.astype(np.float64), plan.flows)
