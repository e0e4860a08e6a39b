"""What no planner can beat, and what the best cluster without planning does.

    clairvoyant   an LP that knows the trace: best plan in hindsight, and the budget a load needs
    specs         clusters without a limit: unlimited budget, no start-up time; other tightness
    best_static   the best fixed replicas in hindsight, found in the simulator
    lookahead     the LP on the terms that are best in hindsight, found in the simulator

Importing the package makes the policies `best-static` and `lp-lookahead` known.
"""

from agents.bounds.best_static import BestStaticPolicy, StaticSearch, best_static
from agents.bounds.clairvoyant import ClairvoyantBound, clairvoyant_bound, clairvoyant_need
from agents.bounds.lookahead import LookaheadPlanner
from agents.bounds.specs import (
    TRANSFORMS,
    find_transform,
    relax,
    scaled_events,
    tighten,
    unlimited,
    zero_startup,
)
from hrl_planner.planner.registry import register_policy

register_policy(
    "best-static", BestStaticPolicy, "the best fixed replicas in hindsight (knows the trace)"
)
register_policy(
    "lp-lookahead",
    LookaheadPlanner,
    "the LP on terms chosen by running the simulator ahead (knows all that will happen)",
)

__all__ = [
    "TRANSFORMS",
    "BestStaticPolicy",
    "ClairvoyantBound",
    "LookaheadPlanner",
    "StaticSearch",
    "best_static",
    "clairvoyant_bound",
    "clairvoyant_need",
    "find_transform",
    "relax",
    "scaled_events",
    "tighten",
    "unlimited",
    "zero_startup",
]
