"""Where the router learns which workers there are, and what the planner wants of them."""

from hrl_planner.router.discovery.base import Discovery, Snapshot, Worker

__all__ = ["Discovery", "Snapshot", "Worker"]
