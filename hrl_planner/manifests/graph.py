"""An installation as one DynamoGraphDeployment: engines, planners and router as its components.

The same pods as elsewhere, under Dynamo's operator: a component's `podTemplate` is the pod template
of the Deployment it takes the place of. Pools leave their replicas to scaling adapters, so that a
local planner may be allowed to scale its own component and nothing else. Facts: docs/dgd.md.
"""

from __future__ import annotations

import dataclasses

from hrl_planner.control.dynamo import DYNAMO_GROUP, GRAPH, VERSIONS
from hrl_planner.manifests.engines import vllm_engines
from hrl_planner.manifests.installation import Installation, Json
from hrl_planner.manifests.planners import planner_deployments
from hrl_planner.manifests.router import router_deployment
from hrl_planner.manifests.tree import base, dynamo_targets

_MAIN = "main"  # the container into which the operator merges what it has to say

_TYPES = {"prefill": "prefill", "decode": "decode", "aggregated": "worker"}


def graph_manifests(installation: Installation) -> list[Json]:
    """Return all objects, with pools that name components of the graph; the graph is the last."""
    installation = dataclasses.replace(installation, targets=dynamo_targets(installation))
    made = [each for part in base(installation).values() for each in part]
    return [*(each for each in made if each["kind"] != "Deployment"), graph(installation)]


def graph(installation: Installation) -> Json:
    """Return the DynamoGraphDeployment of the group's name."""
    pools = {pool.name: pool for pool in installation.spec.pools}
    workers = [
        _component(
            each,
            type=_TYPES[pools[each["metadata"]["name"]].role],
            # It owns the replicas; the operator begins with 1, and a number here would come back
            # whenever the file is applied again.
            scalingAdapter={},
            # The pod brings its own shared memory.
            sharedMemorySize="0",
        )
        for each in vllm_engines(installation)
    ]
    others = [
        # Without a type the operator adds no probes and ports of its own.
        _component(each, replicas=each["spec"]["replicas"])
        for each in (*planner_deployments(installation), router_deployment(installation))
    ]
    return {
        "apiVersion": f"{DYNAMO_GROUP}/{VERSIONS[0]}",
        "kind": GRAPH,
        "metadata": installation.metadata(installation.group, installation.labels()),
        "spec": {"backendFramework": "vllm", "components": [*workers, *others]},
    }


def _component(deployment: Json, **fields: object) -> Json:
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    pod = {**template["spec"], "containers": [{**container, "name": _MAIN}]}
    return {
        "name": deployment["metadata"]["name"],
        **fields,
        "podTemplate": {**template, "spec": pod},
    }
