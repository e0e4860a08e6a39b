"""Kubernetes' objects as the API server stores them: the few fields of its protobuf that matter.

A stored object is four bytes of magic and a wrapper around the message of its kind. Numbers of
fields are part of the API and never change (`k8s.io/api/core/v1/generated.proto`).
"""

from __future__ import annotations

from dataclasses import dataclass

from hrl_planner.router.discovery.kubernetes import POOL_LABEL


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod, as far as it holds GPUs.

    Attributes:
        uid: of it.
        address: once it has one.
        pool: its label.
        phase: of its status.
        leaving: it is to be deleted.
        bound: it has a node.
        ready: its condition.
    """

    uid: str
    address: str
    pool: str
    phase: str
    leaving: bool
    bound: bool
    ready: bool

    @property
    def holds(self) -> bool:
        """Whether it holds or will hold GPUs."""
        return self.phase not in ("Succeeded", "Failed")


def pod_of(value: bytes) -> PodSeen:
    """Read a stored pod."""
    pod = _fields(_object(value))
    meta, spec, status = (_fields(_one(pod, number)) for number in (1, 2, 3))
    labels = dict(_label(entry) for entry in meta.get(11, ()))
    conditions = [_fields(_bytes(entry)) for entry in status.get(2, ())]
    return PodSeen(
        uid=_text(meta, 5),
        address=_text(status, 6),
        pool=labels.get(POOL_LABEL, ""),
        phase=_text(status, 1),
        leaving=9 in meta,
        bound=bool(_text(spec, 10)),
        ready=any(_text(c, 1) == "Ready" and _text(c, 2) == "True" for c in conditions),
    )


def deployment_replicas(value: bytes) -> int:
    """Read how many replicas a stored deployment asks for."""
    spec = _fields(_one(_fields(_object(value)), 2))
    replicas = spec.get(1, [1])[-1]
    assert isinstance(replicas, int)
    return replicas


_Fields = dict[int, list[bytes | int]]


def _object(value: bytes) -> bytes:
    magic = b"k8s\x00"
    if not value.startswith(magic):
        raise ValueError(f"no object of Kubernetes: {value[:20]!r}")
    return _one(_fields(value[len(magic) :]), 2)


def _fields(message: bytes) -> _Fields:
    """Split a protobuf message into its fields by number."""
    found: _Fields = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        part: bytes | int
        if kind == 0:
            part, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            part, at = message[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            part, at = message[at : at + size], at + size
        else:
            raise ValueError(f"protobuf of wire type {kind}")
        found.setdefault(number, []).append(part)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _bytes(part: bytes | int) -> bytes:
    assert isinstance(part, bytes)
    return part


def _one(fields: _Fields, number: int) -> bytes:
    return _bytes(fields.get(number, [b""])[-1])


def _text(fields: _Fields, number: int) -> str:
    return _one(fields, number).decode()


def _label(entry: bytes | int) -> tuple[str, str]:
    fields = _fields(_bytes(entry))
    return _text(fields, 1), _text(fields, 2)
