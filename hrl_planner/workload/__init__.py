"""Workload: what clients ask of the cluster, read from traces or generated.

`Trace` is the one type everything else consumes. Readers (`read_trace`), rate curves, generators
and scenarios make traces; `assign_classes` maps their requests onto a spec's SLO classes;
forecasters guess the next minutes from the last. Nothing here knows the simulator or a planner.
"""

from hrl_planner.workload.classes import assign_classes
from hrl_planner.workload.events import EVENT_KINDS, ClusterEvent, EventKind
from hrl_planner.workload.readers import read_rate_curve, read_trace, write_trace
from hrl_planner.workload.trace import Trace
from hrl_planner.workload.transform import Splits, concat, merge, scale, split_by_day

__all__ = [
    "EVENT_KINDS",
    "ClusterEvent",
    "EventKind",
    "Splits",
    "Trace",
    "assign_classes",
    "concat",
    "merge",
    "read_rate_curve",
    "read_trace",
    "scale",
    "split_by_day",
    "write_trace",
]
