"""KV events of Dynamo's workers, from Dynamo's own event plane."""

from hrl_planner.router.kv.plane.feed import PlaneFeed
from hrl_planner.router.kv.plane.records import Store

__all__ = ["PlaneFeed", "Store"]
