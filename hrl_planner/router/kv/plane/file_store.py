"""Records of Dynamo's file discovery: JSON files in `DYN_FILE_KV`, named by their escaped keys.

Their owner touches a file every few seconds; one that nobody touches is of a process that died.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from hrl_planner.router.kv.plane.records import Channel, Model, Source, SourceName, Told, source

_DEAD_AFTER_S = 30.0  # three times as long as Dynamo itself gives a record
_T = TypeVar("_T")


class FileStore:
    """The records in a directory.

    Args:
        directory: Dynamo's `DYN_FILE_KV`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "v1"

    async def sources(self, name: SourceName) -> list[Source]:
        """Return the publishers of an endpoint; see `Store`."""
        return await asyncio.to_thread(self._sources, name)

    def _sources(self, name: SourceName) -> list[Source]:
        found = []
        for path in (self._directory / "event_channels").glob(f"{_file_name(name.key_prefix)}*"):
            channel = _read(path, Channel)
            told = _read(self._directory / "event_sources" / path.name, Told)
            if channel is None or told is None or _is_dead(path):
                continue
            model = self._model(told.metadata.worker.worker_id)
            if model is not None:
                found.append(source(str(path), channel, told, model))
        return found

    def _model(self, worker_id: int) -> Model | None:
        for path in (self._directory / "mdc").glob(f"*{_file_name('/')}{worker_id:x}"):
            model = _read(path, Model)
            if model is not None:
                return model
        return None


def _is_dead(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _DEAD_AFTER_S
    except OSError:
        return True


def _read(path: Path, type_: type[_T]) -> _T | None:
    """A record; None where it is gone or is written just now."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (OSError, msgspec.DecodeError):
        return None


def _file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", lambda found: f"%{ord(found[0]):02X}", key)
