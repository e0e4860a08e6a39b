"""Addresses in configs: of whom to ask, and where to listen."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_HOST_PORT = re.compile(r"[^/\s]+:([0-9]{1,5})")
_LAST_PORT = 65535


def _is_address(text: str, first_port: int) -> bool:
    found = _HOST_PORT.fullmatch(text)
    return found is not None and first_port <= int(found[1]) <= _LAST_PORT


def _check(text: str) -> str:
    if not _is_address(text, 1):
        raise ValueError("must be HOST:PORT, the port 1 to 65535")
    return text


def _check_listening(text: str) -> str:
    is_socket = text.startswith("unix:") and text != "unix:"
    if not is_socket and not _is_address(text, 0):
        raise ValueError("must be HOST:PORT, the port 0 to 65535, or unix:PATH")
    return text


Address = Annotated[str, AfterValidator(_check)]
"""`host:port` of somebody to connect to."""
ListeningAddress = Annotated[str, AfterValidator(_check_listening)]
"""`host:port` or `unix:path` to listen on; port 0 for any that is free."""
