"""The planner pods: global and local planners on Kubernetes.

A planner reads what the API server says, decides with the policies of `hrl_planner.planner`, and
writes what the ledger allows. Level-triggered: every round starts from what is there, whatever
happened before, and every write is guarded by the version it was decided on.
"""

from hrl_planner.control.connector import Connector
from hrl_planner.control.global_planner import GlobalPlanner
from hrl_planner.control.local_planner import LocalPlanner
from hrl_planner.control.metrics import NoMetrics, PoolMetrics

__all__ = ["Connector", "GlobalPlanner", "LocalPlanner", "NoMetrics", "PoolMetrics"]
