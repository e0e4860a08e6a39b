"""What a pod asks for, as a process can have it: pure functions from the pod to command and probes.

There is no image and no namespace here. A container therefore names its command, listens on the
pod's own address, which it learns as any pod does (`status.podIP`), and finds its volumes where
`volumes.py` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hrl_planner.localcluster.volumes import Mount, at_folders, mounts_of

# Seconds between a pod's arrival on its node and the start of its processes: what pulling an image
# and loading weights take in a real cluster.
STARTUP_ANNOTATION = "localcluster.hrl-planner.io/startup-s"
# Seconds a pod without processes takes to end, or its grace period if that is shorter: what
# finishing the requests of a worker takes.
DRAIN_ANNOTATION = "localcluster.hrl-planner.io/drain-s"

# A pod with these would not do what it says.
_UNSUPPORTED = ("initContainers",)

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_INDEXED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class UnrunnableError(Exception):
    """A pod that cannot be run as processes; the message goes into its status."""


@dataclass(frozen=True)
class Probe:
    """One probe of a container, by HTTP GET or by connecting.

    Attributes:
        port: where it asks, on the pod's address unless `host` says otherwise.
        path: of the HTTP request; None only connects.
        host: another address to ask.
        https: whether to speak TLS; certificates are not checked, as by a kubelet.
        headers: of the HTTP request.
        delay_s, period_s, timeout_s: first probe after the start, time between two, and for each.
        successes, failures: how many in a row make a difference.
    """

    port: int
    path: str | None = None
    host: str | None = None
    https: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    successes: int = 1
    failures: int = 3


@dataclass(frozen=True)
class ContainerSpec:
    """What is run for one container."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str | None
    readiness: Probe | None
    liveness: Probe | None
    startup: Probe | None


def startup_delay_s(pod: Mapping[str, Any]) -> float:
    """How long the pod's start-up annotation says to wait; 0 without it."""
    return _seconds(pod, STARTUP_ANNOTATION)


def drain_s(pod: Mapping[str, Any]) -> float:
    """How long the pod's drain annotation says that its end takes; 0 without it."""
    return _seconds(pod, DRAIN_ANNOTATION)


def _seconds(pod: Mapping[str, Any], annotation: str) -> float:
    text = (pod["metadata"].get("annotations") or {}).get(annotation, "0")
    try:
        return float(text)
    except ValueError:
        raise UnrunnableError(f"annotation {annotation}: {text!r} is no number") from None


def container_specs(
    pod: Mapping[str, Any], address: str, folders: Mapping[str, Path] | None = None
) -> list[ContainerSpec]:
    """All containers of a pod.

    Args:
        pod: as the API server has it.
        address: its own.
        folders: of its volumes, by name.

    Raises:
        UnrunnableError: it asks for what processes cannot have.
    """
    for name in _UNSUPPORTED:
        if pod["spec"].get(name):
            raise UnrunnableError(f"{name}: not supported by the local kubelet")
    return [
        _container(pod, container, address, mounts_of(container, folders or {}))
        for container in pod["spec"]["containers"]
    ]


def _container(
    pod: Mapping[str, Any], container: Mapping[str, Any], address: str, mounts: Sequence[Mount]
) -> ContainerSpec:
    name = container["name"]
    if not container.get("command"):
        raise UnrunnableError(
            f"container {name}: has no command, and the image that would have one is not run here"
        )
    environment: dict[str, str] = {}
    if container.get("envFrom"):
        raise UnrunnableError(f"container {name}: envFrom is not supported by the local kubelet")
    for entry in container.get("env") or ():
        value = expand(_value(pod, entry, address), environment)
        environment[entry["name"]] = at_folders(value, mounts)
    words = [*container["command"], *(container.get("args") or ())]
    return ContainerSpec(
        name=name,
        image=container.get("image", ""),
        command=tuple(_word(word, environment, mounts) for word in words),
        environment=environment,
        working_directory=at_folders(container.get("workingDir") or "", mounts) or None,
        readiness=_probe(container, "readinessProbe"),
        liveness=_probe(container, "livenessProbe"),
        startup=_probe(container, "startupProbe"),
    )


def _word(word: str, environment: Mapping[str, str], mounts: Sequence[Mount]) -> str:
    return at_folders(expand(word, environment), mounts)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace $(NAME) as a kubelet does: unknown names stay, $$ is a dollar."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else environment.get(name, match.group(0))

    return _REFERENCE.sub(replacement, text)


def _value(pod: Mapping[str, Any], entry: Mapping[str, Any], address: str) -> str:
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    path = entry["valueFrom"].get("fieldRef", {}).get("fieldPath")
    if path is None:
        kind = ", ".join(entry["valueFrom"])
        raise UnrunnableError(f"env {entry['name']}: {kind} is not supported by the local kubelet")
    metadata, spec = pod["metadata"], pod["spec"]
    if indexed := _INDEXED.fullmatch(path):
        return str((metadata.get(indexed[1]) or {}).get(indexed[2], ""))
    values = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": address,
        "status.hostIP": address,
    }
    if path not in values:
        raise UnrunnableError(f"env {entry['name']}: unknown field {path}")
    return str(values[path])


def _probe(container: Mapping[str, Any], kind: str) -> Probe | None:
    spec = container.get(kind)
    if spec is None:
        return None
    ports = container.get("ports") or ()
    if get := spec.get("httpGet"):
        probe = Probe(
            _port(get["port"], ports, kind),
            path=get.get("path", "/"),
            host=get.get("host"),
            https=get.get("scheme", "HTTP") == "HTTPS",
            headers=tuple((h["name"], h["value"]) for h in get.get("httpHeaders") or ()),
        )
    elif connect := spec.get("tcpSocket"):
        probe = Probe(_port(connect["port"], ports, kind), host=connect.get("host"))
    else:
        raise UnrunnableError(f"{kind}: only httpGet and tcpSocket are supported here")
    return replace(
        probe,
        delay_s=float(spec.get("initialDelaySeconds", 0)),
        period_s=float(spec.get("periodSeconds", 10)),
        timeout_s=float(spec.get("timeoutSeconds", 1)),
        successes=int(spec.get("successThreshold", 1)),
        failures=int(spec.get("failureThreshold", 3)),
    )


def _port(port: int | str, ports: Sequence[Mapping[str, Any]], kind: str) -> int:
    if isinstance(port, int):
        return port
    for entry in ports:
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise UnrunnableError(f"{kind}: no port is named {port}")
