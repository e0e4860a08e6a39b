"""The few shapes that Envoy's configuration repeats everywhere."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def typed(name: str, **fields: Any) -> Json:
    """An extension's configuration; `name` is its message without the leading `envoy.`."""
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}


def seconds(value: float) -> str:
    """A duration as protobuf's JSON has it."""
    return f"{value:.3f}s"


def socket_address(where: str) -> Json:
    """From `unix:/path` or `ip:port`."""
    if where.startswith("unix:"):
        return {"pipe": {"path": where.removeprefix("unix:")}}
    host, _, port = where.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def write_header(name: str, value: str) -> Json:
    """A header mutation; a `value` that comes out empty leaves the header as it is."""
    return {
        "append": {
            "header": {"key": name, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    }
