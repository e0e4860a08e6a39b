"""Scale targets: what a pool's replicas are asked of, through the `scale` subresource.

A target is read with the version of the object that carries its replicas and with what tells
changes of its spec apart, as the ledger needs both; it is scaled by a write that the API server
refuses at any other version. Which pool a target belongs to is not known here.
"""

from __future__ import annotations

from typing import Any

from kubernetes import client

from hrl_planner.control.requests import REQUEST_TIMEOUT_S, accepted, asked, kube_error
from hrl_planner.errors import KubeError
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.ledger import Target
from hrl_planner.ledger.replicas import MISSING

_READS_OF_A_TARGET = 4


class TargetState:
    """A scale target as read: for the ledger, and what else its planner wants to know.

    Attributes:
        target: for the ledger.
        selector: of its pods.
        observed: replicas its controller reports; equal to those asked for once it caught up.
    """

    __slots__ = ("observed", "selector", "target")

    def __init__(self, target: Target, selector: str = "", observed: int = 0) -> None:
        """See the class."""
        self.target, self.selector, self.observed = target, selector, observed


class Targets:
    """Reads and scales the targets of one namespace.

    Args:
        api: an authenticated client.
        namespace: where the targets are.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        """See the class."""
        self._namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._plurals: dict[tuple[str, str], str] = {}

    def read(self, ref: ScaleTargetRef) -> TargetState:
        """Return a scale target with the version of its spec; missing ones are no error."""
        for _ in range(_READS_OF_A_TARGET):
            try:
                scale: Any = self._objects.get_namespaced_custom_object_scale(
                    *self.path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                )
                whole: Any = self._objects.get_namespaced_custom_object(
                    *self.path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                )
            except client.ApiException as error:
                if error.status == 404:
                    return TargetState(MISSING)
                raise kube_error(f"read {ref.kind} {ref.name}", error) from error
            meta = whole["metadata"]
            if scale["metadata"]["resourceVersion"] == meta["resourceVersion"]:
                return _target_state(scale, meta)
        raise KubeError(f"{ref.kind} {ref.name}: changes faster than it can be read")

    def scale(self, ref: ScaleTargetRef, replicas: int, version: str) -> bool:
        """Ask a target for replicas, if it still has a version."""
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": ref.name,
                "namespace": self._namespace,
                "resourceVersion": version,
            },
            "spec": {"replicas": replicas},
        }
        written = accepted(
            f"scale {ref.kind} {ref.name}",
            lambda: self._objects.replace_namespaced_custom_object_scale(
                *self.path(ref), ref.name, body, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        return written is not None

    def path(self, ref: ScaleTargetRef) -> tuple[str, str, str, str]:
        """Return group, version, namespace and plural of a target's kind.

        Raises:
            KubeError: if the API server has no such kind that can be scaled.
        """
        group, _, version = ref.api_version.rpartition("/")
        if not group:
            raise KubeError(f"scaleTargetRef: {ref.kind} of {ref.api_version} cannot be a target")
        key = (ref.api_version, ref.kind)
        if key not in self._plurals:
            found = asked(
                f"discover {ref.api_version}",
                lambda: self._objects.get_api_resources(group, version),
            )
            scaled = {
                r.name.partition("/")[0] for r in found.resources if r.name.endswith("/scale")
            }
            names = [r.name for r in found.resources if r.kind == ref.kind and r.name in scaled]
            if not names:
                raise KubeError(f"scaleTargetRef: {ref.api_version} has no scalable {ref.kind}")
            self._plurals[key] = names[0]
        return group, version, self._namespace, self._plurals[key]


def _target_state(scale: Any, meta: Any) -> TargetState:
    version, generation = meta["resourceVersion"], meta.get("generation")
    # Where nothing counts changes of the spec, every change counts as one.
    spec_version = f"{meta['uid']}/{generation or f'version {version}'}"
    replicas = int(scale["spec"].get("replicas", 0))
    status = scale.get("status", {})
    target = Target(replicas, version, spec_version)
    return TargetState(target, status.get("selector", ""), int(status.get("replicas", 0)))
