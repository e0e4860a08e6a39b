"""The custom resources: what they are (`resources`), their definitions (`crds`), what they mean."""

from hrl_planner.kube.convert import accounts_of, budget_of, cluster_spec_of, manifests_of
from hrl_planner.kube.crds import GROUP, VERSION, definitions
from hrl_planner.kube.resources import ServingGroup, WorkerPool

__all__ = [
    "GROUP",
    "VERSION",
    "ServingGroup",
    "WorkerPool",
    "accounts_of",
    "budget_of",
    "cluster_spec_of",
    "definitions",
    "manifests_of",
]
