"""The fluid planner with perfect foresight of rates and lengths: a bound, not a policy."""

from __future__ import annotations

from hrl_planner.planner.demand import DemandSource, TraceDemand, startup_horizon_s
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.policy import PlanContext


class OracleFluidPlanner(FluidPlanner):
    """The LP on the demand that the trace will have."""

    name = "lp-oracle"

    def _source(self, context: PlanContext) -> DemandSource:
        return TraceDemand(startup_horizon_s(context.spec))
