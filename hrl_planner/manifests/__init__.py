"""What an operator applies, made of a cluster spec: accounts, planners, router, network policies.

The checked-in tree under `deploy/` is its output for the spec `small`; `hrl-planner manifests`
writes one for any spec.
"""

from hrl_planner.manifests.accounts import accounts
from hrl_planner.manifests.engines import mock_engines, vllm_engines
from hrl_planner.manifests.graph import graph, graph_manifests
from hrl_planner.manifests.installation import (
    PLANNER_IMAGE,
    ROUTER_IMAGE,
    Installation,
    PlannerProcess,
)
from hrl_planner.manifests.monitoring import monitors
from hrl_planner.manifests.network import network_policies
from hrl_planner.manifests.planners import planner_deployments
from hrl_planner.manifests.router import router_config, router_deployment, router_objects
from hrl_planner.manifests.tree import base, custom_resources, documents, dynamo_targets, tree

__all__ = [
    "PLANNER_IMAGE",
    "ROUTER_IMAGE",
    "Installation",
    "PlannerProcess",
    "accounts",
    "base",
    "custom_resources",
    "documents",
    "dynamo_targets",
    "graph",
    "graph_manifests",
    "mock_engines",
    "monitors",
    "network_policies",
    "planner_deployments",
    "router_config",
    "router_deployment",
    "router_objects",
    "tree",
    "vllm_engines",
]
