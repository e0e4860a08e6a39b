"""All manifests of an installation as a kustomize tree: file name to text.

    base/                    group, pools, accounts, planners, router, network; changes nothing yet
    components/active        lets planners carry out what they decide
    components/monitoring    for the Prometheus operator
    overlays/deployments     base, and vLLM Deployments to start from
    overlays/dgd             base, scaling components of a DynamoGraphDeployment
    overlays/demo            base, mock engines, active

An overlay changes what differs and repeats nothing: its patches are made by asking the same
functions about another installation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import yaml

from hrl_planner.control.dynamo import DYNAMO_GROUP, GRAPH, VERSIONS
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.manifests.accounts import accounts
from hrl_planner.manifests.engines import mock_engines, vllm_engines
from hrl_planner.manifests.installation import Installation, Json
from hrl_planner.manifests.monitoring import monitors
from hrl_planner.manifests.network import network_policies
from hrl_planner.manifests.planners import planner_deployments, planner_disruption_budgets
from hrl_planner.manifests.router import router_config, router_objects

_KUSTOMIZE = "kustomize.config.k8s.io"
_HEAD = "# Made by `hrl-planner manifests`: change what differs for you in an overlay.\n"


def tree(installation: Installation) -> dict[str, str]:
    """Return the whole tree."""
    written = {f"base/{name}": documents(made) for name, made in base(installation).items()}
    written["base/kustomization.yaml"] = _kustomization(
        namespace=installation.namespace, resources=list(base(installation))
    )
    return written | _components(installation) | _overlays(installation)


def base(installation: Installation) -> dict[str, list[Json]]:
    """Return the objects of the base by file name, in the order they are to be applied."""
    group, *pools = custom_resources(installation)
    return {
        "accounts.yaml": accounts(installation),
        "group.yaml": [group],
        "pools.yaml": pools,
        "network.yaml": network_policies(installation),
        "planners.yaml": [
            *planner_deployments(installation),
            *planner_disruption_budgets(installation),
        ],
        "router.yaml": router_objects(installation),
    }


def custom_resources(installation: Installation) -> list[Json]:
    """Return the group and its pools."""
    pools = [pool.name for pool in installation.spec.pools]
    targets = {pool: installation.target(pool) for pool in pools}
    made = manifests_of(installation.spec, targets, installation.namespace)
    if installation.checkpoint is not None:
        made[0]["spec"]["policy"]["checkpoint"] = installation.checkpoint
    for each in made:
        each["metadata"] = installation.metadata(each["metadata"]["name"], installation.labels())
    return made


def dynamo_targets(installation: Installation) -> dict[str, ScaleTargetRef]:
    """Return pools as components of one DynamoGraphDeployment of the group's name."""
    return {
        pool.name: ScaleTargetRef(
            api_version=f"{DYNAMO_GROUP}/{VERSIONS[0]}",
            kind=GRAPH,
            name=installation.group,
            component=pool.name,
        )
        for pool in installation.spec.pools
    }


def _components(installation: Installation) -> dict[str, str]:
    group = installation.group
    active = {"op": "replace", "path": "/spec/policy/mode", "value": "active"}
    patch = {"target": {"kind": "ServingGroup", "name": group}, "patch": _yaml([active])}
    return {
        "components/active/kustomization.yaml": _component(patches=[patch]),
        "components/monitoring/kustomization.yaml": _component(resources=["monitors.yaml"]),
        "components/monitoring/monitors.yaml": documents(monitors(installation)),
    }


def _overlays(installation: Installation) -> dict[str, str]:
    dynamo = dataclasses.replace(installation, targets=dynamo_targets(installation))
    pools = [_part(pool, "spec", "scaleTargetRef") for pool in custom_resources(dynamo)[1:]]
    before = accounts(installation)
    roles = [_part(made, "rules") for made in accounts(dynamo) if made not in before]
    words = router_config(installation, tokenizer={"kind": "words"})  # mock engines count in them
    return {
        "overlays/deployments/kustomization.yaml": _kustomization(
            namespace=installation.namespace, resources=["../../base", "engines.yaml"]
        ),
        "overlays/deployments/engines.yaml": documents(vllm_engines(installation)),
        "overlays/dgd/kustomization.yaml": _kustomization(
            namespace=installation.namespace,
            resources=["../../base"],
            patches=[{"path": "pools.yaml"}, {"path": "roles.yaml"}],
        ),
        "overlays/dgd/pools.yaml": documents(pools),
        "overlays/dgd/roles.yaml": documents(roles),
        "overlays/demo/kustomization.yaml": _kustomization(
            namespace=installation.namespace,
            resources=["../../base", "engines.yaml"],
            components=["../../components/active"],
            patches=[{"path": "router.yaml"}],
        ),
        "overlays/demo/router.yaml": documents([_part(words, "data", "router.yaml")]),
        "overlays/demo/engines.yaml": documents(mock_engines(installation)),
    }


def _part(made: Json, *path: str) -> Json:
    """Return an object with one field of its own: a patch."""
    metadata = {key: made["metadata"][key] for key in ("name", "namespace")}
    patch: Json = {"apiVersion": made["apiVersion"], "kind": made["kind"], "metadata": metadata}
    value: Json = made
    for key in path:
        value = value[key]
    for key in reversed(path):
        value = {key: value}
    return patch | value


def _kustomization(**fields: object) -> str:
    head = {"apiVersion": f"{_KUSTOMIZE}/v1beta1", "kind": "Kustomization"}
    return _HEAD + _yaml(head | fields)


def _component(**fields: object) -> str:
    return _HEAD + _yaml({"apiVersion": f"{_KUSTOMIZE}/v1alpha1", "kind": "Component", **fields})


def documents(objects: Sequence[Json]) -> str:
    """Return objects as one file."""
    return _HEAD + "---\n".join(_yaml(made) for made in objects)


def _yaml(data: Mapping[str, object] | Sequence[object]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as people do, and never refers from one object to another."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
