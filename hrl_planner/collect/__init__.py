"""Metrics of real workers as the observation that the simulator produces too (docs/collect.md).

`Collector` asks and remembers; `PoolWindow`, `ClassWindow` and `observe_cluster` are the same
without clock and network, for whoever has samples already.
"""

from hrl_planner.collect.assemble import Replicas, observe_cluster, observe_pool
from hrl_planner.collect.classes import ClassWindow, read_router
from hrl_planner.collect.collector import Collector, PoolWorker
from hrl_planner.collect.prometheus import PrometheusSource
from hrl_planner.collect.sample import WorkerSample
from hrl_planner.collect.source import PageSource, Source, Target
from hrl_planner.collect.window import PoolTotals, PoolWindow, Timing

__all__ = [
    "ClassWindow",
    "Collector",
    "PageSource",
    "PoolTotals",
    "PoolWindow",
    "PoolWorker",
    "PrometheusSource",
    "Replicas",
    "Source",
    "Target",
    "Timing",
    "WorkerSample",
    "observe_cluster",
    "observe_pool",
    "read_router",
]
