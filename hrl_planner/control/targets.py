"""Scale targets: what a pool's replicas are asked of.

That is a `scale` subresource, or a component of a Dynamo graph deployment, which has a scaling
adapter with one, or holds its replicas beside those of others. A target is read with the version
of the object that carries its replicas and with what tells changes of its spec apart, as the
ledger needs both; it is scaled by a write that the API server refuses at any other version. Which
pool a target belongs to is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kubernetes import client

from hrl_planner.control import dynamo
from hrl_planner.control.pods import SET_NAME
from hrl_planner.control.requests import (
    REQUEST_TIMEOUT_S,
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    NotServedError,
    accepted,
    asked,
)
from hrl_planner.errors import KubeError
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.ledger import Target
from hrl_planner.ledger.replicas import MISSING

_READS_OF_A_TARGET = 4
_LEADER_WORKER_SET = ("leaderworkerset.x-k8s.io", "LeaderWorkerSet")


@dataclass(frozen=True, slots=True)
class TargetState:
    """A scale target as read: for the ledger, and what else its planner wants to know.

    Attributes:
        target: for the ledger.
        selector: of its pods, where it is known.
        observed: replicas its controller reports; equal to those asked for once it caught up.
        shared: the object carries the replicas of others as well, so that its version changes
            without this target's doing.
        missing: why there is no target, for people.
    """

    target: Target
    selector: str = ""
    observed: int = 0
    shared: bool = False
    missing: str = ""


class TargetError(KubeError):
    """A target that may exist, but cannot be read.

    Attributes:
        reason: of a condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        """See the class."""
        super().__init__(message)
        self.reason = reason


class _Served(NamedTuple):
    """A resource of the API server."""

    plural: str
    scalable: bool


def identity(ref: ScaleTargetRef) -> tuple[str, str, str]:
    """Return what two references to one target have in common: group, kind and name.

    Versions do not matter, and a component is the same target as its adapter.
    """
    if ref.component is not None:
        adapter = dynamo.adapter_name(ref.name, ref.component)
        return dynamo.DYNAMO_GROUP, dynamo.ADAPTER, adapter
    return ref.api_version.rpartition("/")[0], ref.kind, ref.name


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
        self._resources: dict[tuple[str, str], _Served] = {}

    def read(self, ref: ScaleTargetRef, known: Any | None = None) -> TargetState:
        """Return a scale target with the version of its spec; missing ones are no error.

        Args:
            ref: the target.
            known: its metadata at some version; if that is the present one, the scale is all that
                is read.

        Raises:
            TargetError: if it cannot be read, whatever it may be.
            ConflictError: if it changes all the time.
        """
        try:
            if ref.component is not None:
                return self._read_component(ref)
            return self._read_scale(ref, known)
        except (TargetError, ConflictError):
            raise
        except DeniedError as error:
            raise TargetError("Denied", str(error)) from error
        except KubeError as error:
            raise TargetError("Unreadable", str(error)) from error

    def scale(self, ref: ScaleTargetRef, replicas: int, version: str) -> bool:
        """Ask a target for replicas, if what carries them still has a version.

        Raises:
            KubeError: if the API server refuses for another reason.
        """
        if ref.component is None:
            return self._write_scale(ref, replicas, version)
        adapter = self._adapter(ref)
        if adapter is not None and self._get(adapter, required=False) is not None:
            return self._write_scale(adapter, replicas, version)
        return self._patch_component(ref, ref.component, replicas, version)

    def path(self, ref: ScaleTargetRef) -> tuple[str, str, str, str]:
        """Return group, version, namespace and plural of a target's kind.

        Raises:
            TargetError: if the API server has no such kind.
        """
        group, _, version = ref.api_version.rpartition("/")
        return group, version, self._namespace, self._served(ref).plural

    def carriers(self, ref: ScaleTargetRef) -> list[ScaleTargetRef]:
        """Return the objects that a target is read from, whether or not they exist.

        Raises:
            TargetError: if the API server has no such kinds.
        """
        adapter = None if ref.component is None else self._adapter(ref)
        return [ref] if adapter is None else [ref, adapter]

    # Anything with a scale subresource.

    def _read_scale(self, ref: ScaleTargetRef, known: Any | None = None) -> TargetState:
        served = self._served(ref)
        if not served.scalable:
            hint = ""
            if ref.kind == dynamo.GRAPH:
                hint = "; name one of its components in scaleTargetRef.component"
            raise TargetError("NotScalable", f"{ref.kind} has no scale subresource{hint}")
        for _ in range(_READS_OF_A_TARGET):
            try:
                scale: Any = asked(
                    f"read the scale of {ref.kind} {ref.name}",
                    lambda: self._objects.get_namespaced_custom_object_scale(
                        *self.path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                    ),
                )
                version = scale["metadata"]["resourceVersion"]
                if known is None or known["resourceVersion"] != version:
                    known = self._get(ref)["metadata"]
            except NotFoundError:
                return TargetState(MISSING, missing=f"{ref.kind} {ref.name} does not exist")
            if known["resourceVersion"] == version:
                return _state_of_scale(ref, scale, known)
        raise ConflictError(f"{ref.kind} {ref.name}: changes faster than it can be read")

    def _write_scale(self, ref: ScaleTargetRef, replicas: int, version: str) -> bool:
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

    # Components of a Dynamo graph deployment.

    def _read_component(self, ref: ScaleTargetRef) -> TargetState:
        assert ref.component is not None
        name, component = ref.name, ref.component
        selector = dynamo.pod_selector(name, component)
        adapter = self._adapter(ref)
        if adapter is not None:
            state = self._read_scale(adapter)
            if state.target != MISSING:
                return replace(state, selector=state.selector or selector)
        graph = self._get(ref, required=False)
        if graph is None:
            missing = f"{ref.kind} {name} does not exist"
            return TargetState(MISSING, selector, missing=missing)
        components = dynamo.components(graph)
        if component not in components:
            known = ", ".join(components) or "none"
            missing = f"{ref.kind} {name} has no component {component}; it has: {known}"
            return TargetState(MISSING, selector, missing=missing)
        if adapter is not None and dynamo.has_adapter(components[component]):
            # It owns the replicas: what were written into the DGD, it would take back.
            raise TargetError(
                "AdapterMissing",
                f"{adapter.kind} {adapter.name} does not exist yet; "
                f"the Dynamo operator makes it for component {component}",
            )
        meta = graph["metadata"]
        target = Target(
            dynamo.replicas(components[component]), meta["resourceVersion"], _spec_version(meta)
        )
        reported = dynamo.observed(graph, component)
        return TargetState(target, selector, -1 if reported is None else reported, shared=True)

    def _patch_component(
        self, ref: ScaleTargetRef, component: str, replicas: int, version: str
    ) -> bool:
        graph = self._get(ref, required=False)
        if graph is None or graph["metadata"]["resourceVersion"] != version:
            return False
        patch = dynamo.scaling(graph, component, replicas, version)
        try:
            written = accepted(
                f"scale {component} of {ref.kind} {ref.name}",
                lambda: self._objects.patch_namespaced_custom_object(
                    *self.path(ref),
                    ref.name,
                    patch,
                    _content_type="application/json-patch+json",
                    _request_timeout=REQUEST_TIMEOUT_S,
                ),
            )
        except InvalidError:
            now = self._get(ref, required=False)
            if now is not None and now["metadata"]["resourceVersion"] == version:
                raise
            return False  # components have changed their places
        return written is not None

    def _adapter(self, ref: ScaleTargetRef) -> ScaleTargetRef | None:
        """Return where a component's adapter would be; None where nobody defines adapters."""
        assert ref.component is not None
        group, _, version = ref.api_version.rpartition("/")
        for served in dict.fromkeys((version, *dynamo.VERSIONS)):
            adapter = ScaleTargetRef(
                api_version=f"{group}/{served}",
                kind=dynamo.ADAPTER,
                name=dynamo.adapter_name(ref.name, ref.component),
            )
            try:
                if self._served(adapter).scalable:
                    return adapter
            except TargetError:
                continue
        return None

    # Their parts.

    def _get(self, ref: ScaleTargetRef, *, required: bool = True) -> Any:
        try:
            return asked(
                f"read {ref.kind} {ref.name}",
                lambda: self._objects.get_namespaced_custom_object(
                    *self.path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                ),
            )
        except NotFoundError:
            if required:
                raise
            return None

    def _served(self, ref: ScaleTargetRef) -> _Served:
        """Return the resource of a kind; found once, it is kept."""
        key = (ref.api_version, ref.kind)
        if key not in self._resources:
            self._resources[key] = self._discover(ref)
        return self._resources[key]

    def _discover(self, ref: ScaleTargetRef) -> _Served:
        group, _, version = ref.api_version.rpartition("/")
        if not group:
            message = f"{ref.kind} of {ref.api_version} cannot be a target: kinds of the core "
            raise TargetError("UnknownKind", message + "group are not supported")
        try:
            found = asked(
                f"discover {ref.api_version}",
                lambda: self._objects.get_api_resources(group, version),
            )
        except NotServedError as error:
            message = f"the API server does not know {ref.api_version}; is its definition there?"
            raise TargetError("UnknownKind", message) from error
        names = [r.name for r in found.resources if r.kind == ref.kind and "/" not in r.name]
        if not names:
            message = f"the API server knows no {ref.kind} in {ref.api_version}"
            raise TargetError("UnknownKind", message)
        scalable = any(r.name == f"{names[0]}/scale" for r in found.resources)
        return _Served(names[0], scalable)


def _state_of_scale(ref: ScaleTargetRef, scale: Any, meta: Any) -> TargetState:
    replicas = int(scale["spec"].get("replicas", 0))
    status = scale.get("status", {})
    selector = status.get("selector", "")
    if (ref.api_version.rpartition("/")[0], ref.kind) == _LEADER_WORKER_SET:
        # Its scale names leaders alone; workers that outlive theirs hold GPUs, too.
        selector = f"{SET_NAME}={ref.name}"
    target = Target(replicas, meta["resourceVersion"], _spec_version(meta))
    return TargetState(target, selector, int(status.get("replicas", 0)))


def _spec_version(meta: Any) -> str:
    # Where nothing counts changes of the spec, every change counts as one.
    return f"{meta['uid']}/{meta.get('generation') or 'version ' + meta['resourceVersion']}"
