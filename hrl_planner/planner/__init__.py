"""Planners: the policy protocol, the policies without learning, and the loop that runs them."""

from hrl_planner.planner.policy import Plan, PlanContext, Policy

__all__ = ["Plan", "PlanContext", "Policy"]
