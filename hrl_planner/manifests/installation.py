"""What is installed: a cluster spec in a namespace, and the processes that plan and route for it.

Everything in this package is made of one `Installation`, so that account, process and network
policy of a planner cannot disagree on its name. Nothing here talks to an API server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from hrl_planner.errors import ManifestError
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.planner.checkpoint import shipped
from hrl_planner.spec import ClusterSpec

Json = dict[str, Any]
Layout = Literal["per-pool", "all-in-one"]
Component = Literal["planner", "router"]

PREFIX = "hrl-planner"
ROUTER_PORT, ROUTER_METRICS_PORT, HEALTH_PORT = 8080, 9090, 8081
_VERSION = version("hrl-planner")
PLANNER_IMAGE, ROUTER_IMAGE = f"{PREFIX}:{_VERSION}", f"{PREFIX}-router:{_VERSION}"

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a label of RFC 1123
# The longest name made of one, `hrl-planner-router-NAME`, is a label value and a Service.
_LONGEST = 63 - len(f"{PREFIX}-router-")


@dataclass(frozen=True)
class Installation:
    """A cluster spec on Kubernetes.

    Attributes:
        spec: the cluster; its name becomes the ServingGroup's.
        namespace: of all objects.
        targets: what a pool is scaled by, by pool; absent: the Deployment of the pool's name.
        layout: a planner process per level and pool, or one for all.
        planner_image: of planners.
        router_image: of the router, Envoy included.
        checkpoint: a trained planner that decides at both levels: an absolute path in the
            planners' pods, or the name of the spec one ships for.
    """

    spec: ClusterSpec
    namespace: str
    targets: Mapping[str, ScaleTargetRef] = field(default_factory=dict)
    layout: Layout = "per-pool"
    planner_image: str = PLANNER_IMAGE
    router_image: str = ROUTER_IMAGE
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the API server would refuse.

        Raises:
            ManifestError: with field and value.
            CheckpointError: no checkpoint ships by the name given.
        """
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ManifestError(
                f"namespace: {self.namespace!r} cannot be one: at most 63 lower-case letters, "
                "digits and '-', a letter or digit first and last"
            )
        for what, image in (("image", self.planner_image), ("router-image", self.router_image)):
            if not re.fullmatch(r"\S+", image):
                raise ManifestError(f"{what}: {image!r} names no image")
        if self.checkpoint is not None and not self.checkpoint.startswith("/"):
            if "/" in self.checkpoint:
                raise ManifestError(
                    f"checkpoint: {self.checkpoint!r} is no absolute path in the planners' pods"
                )
            shipped(self.checkpoint)
        pools = [pool.name for pool in self.spec.pools]
        for what, name in (("name", self.group), *(("pools[].name", pool) for pool in pools)):
            if len(name) > _LONGEST or not _DNS_LABEL.fullmatch(name):
                raise ManifestError(
                    f"{self.group}: {what}: {name!r} cannot name Kubernetes objects: at most "
                    f"{_LONGEST} lower-case letters, digits and '-', a letter first"
                )
        for pool in self.targets:
            if pool not in pools:
                raise ManifestError(
                    f"{self.group}: no pool is named {pool!r}; there are {', '.join(pools)}"
                )

    @property
    def group(self) -> str:
        """Name of the ServingGroup."""
        return self.spec.name

    @property
    def router(self) -> str:
        """Name of the router's account, Deployment and Service."""
        return f"{PREFIX}-router-{self.group}"

    def target(self, pool: str) -> ScaleTargetRef:
        """Return what a pool is scaled by."""
        return self.targets.get(pool) or ScaleTargetRef(kind="Deployment", name=pool)

    def planners(self) -> list[PlannerProcess]:
        """Return the planner processes: who plans what."""
        pools = tuple(pool.name for pool in self.spec.pools)
        group = f"--group={self.group}"
        if self.layout == "all-in-one":
            name = f"{PREFIX}-all-{self.group}"
            return [PlannerProcess(name, ("all", group), True, pools, whole=True)]
        name = f"{PREFIX}-global-{self.group}"
        return [
            PlannerProcess(name, ("global", group), True, ()),
            *(
                PlannerProcess(
                    f"{PREFIX}-local-{pool}", ("local", f"--pool={pool}"), False, (pool,)
                )
                for pool in pools
            ),
        ]

    def labels(self, component: Component | None = None, name: str = "") -> dict[str, str]:
        """Return the labels of one process; of all of a kind, or of the whole, without its name."""
        labels = {"app.kubernetes.io/name": PREFIX, "app.kubernetes.io/part-of": self.group}
        if component is not None:
            labels["app.kubernetes.io/component"] = component
        if name:
            labels["app.kubernetes.io/instance"] = name
        return labels

    def metadata(self, name: str, labels: Mapping[str, str]) -> Json:
        """Return metadata of an object."""
        return {"name": name, "namespace": self.namespace, "labels": dict(labels)}


@dataclass(frozen=True)
class PlannerProcess:
    """One planner process.

    Attributes:
        name: of its account and Deployment.
        arguments: of `hrl-planner plan`.
        divides: whether it divides the group's budget.
        scales: pools it scales.
        whole: it watches whole kinds of objects, and holds all leases by one heartbeat.
    """

    name: str
    arguments: tuple[str, ...]
    divides: bool
    scales: tuple[str, ...]
    whole: bool = False

    def leases(self, group: str) -> list[str]:
        """Return the names of the leases it acts under."""
        levels = [f"global-{group}"] if self.divides else []
        return [f"{PREFIX}-{level}" for level in (*levels, *(f"local-{p}" for p in self.scales))]
