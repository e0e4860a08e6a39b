"""Workers and flows from a YAML file, read again whenever it changes.

    workers:
      - {name: p0, pool: prefill-h100, address: "10.0.0.5:8000"}
    flows:
      interactive: {prefill-h100: 1.0}

Editors replace a file by renaming another over it, and Kubernetes swaps a link in the path of a
mounted ConfigMap; so the folder is watched, not the file, and what was read is compared with what
is known. Each few seconds it is read without any notice, for file systems that give none. A file
that is broken at the start is an error; one that breaks later is logged and the last good one
stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from watchfiles import awatch

from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import RouterError
from hrl_planner.router.addresses import Address
from hrl_planner.router.discovery.base import Engine, Snapshot, Worker

_log = logging.getLogger(__name__)
_REREAD_S = 5.0

Name = Annotated[str, Field(min_length=1)]
ZmqEndpoint = Annotated[str, Field(pattern=r"^(tcp|ipc|inproc)://\S+$")]
EventSource = Annotated[
    str,
    Field(pattern=r"^((tcp|ipc|inproc)://\S+|dyn://[^./\s]+\.[^./\s]+\.[^./\s]+(/\d+)?)$"),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _WorkerEntry(_Model):
    """The fields of a `Worker`."""

    name: Name
    pool: Name
    address: Address
    draining: bool = False
    engine: Engine = "vllm"
    kv_events: EventSource | None = None
    kv_replay: ZmqEndpoint | None = None
    bootstrap: Address | None = None


class _WorkersFile(_Model):
    workers: tuple[_WorkerEntry, ...]
    flows: dict[Name, dict[Name, Annotated[float, Field(ge=0)]]] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[str] = set()
        for worker in self.workers:
            if worker.name in seen:
                raise ValueError(f"two workers are named {worker.name!r}; names are unique")
            seen.add(worker.name)
        return self


class FileDiscovery:
    """A file as a source of snapshots.

    Args:
        path: the YAML file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield what the file says, then again whenever it says something else.

        Raises:
            RouterError: if the file is not valid at the start.
        """
        changed = asyncio.Event()
        watching = asyncio.create_task(self._watch(changed))
        try:
            # It watches before the first read, so that no change falls between.
            await asyncio.sleep(0)
            version = self._version()
            known = read_workers(self._path)
            yield known
            complaint = ""
            while True:
                await self._next(changed, watching)
                # Other files of the folder change too, some of them, as logs, all the time.
                before, version = version, self._version()
                if version == before:
                    continue
                try:
                    found = read_workers(self._path)
                except RouterError as error:
                    if str(error) != complaint:
                        _log.error("%s; the %d workers of before stay", error, len(known.workers))
                    complaint = str(error)
                    continue
                complaint = ""
                if found != known:
                    known = found
                    yield known
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _version(self) -> tuple[int, ...]:
        """What a change of the file cannot leave as it is."""
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size

    async def _watch(self, changed: asyncio.Event) -> None:
        folders = {self._path.parent.absolute(), self._path.resolve().parent}
        async for _ in awatch(
            *folders,
            recursive=False,
            debounce=100,
            step=20,
            rust_timeout=round(_REREAD_S * 1000),
            yield_on_timeout=True,
        ):
            changed.set()

    async def _next(self, changed: asyncio.Event, watching: asyncio.Task[None]) -> None:
        waiting = asyncio.create_task(changed.wait())
        await asyncio.wait({waiting, watching}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if watching.done():
            watching.result()
        changed.clear()


def read_workers(path: Path) -> Snapshot:
    """Read a workers file.

    Raises:
        RouterError: with file, field and value.
    """
    data = read_mapping(path, "workers file", RouterError)
    try:
        found = _WorkersFile.model_validate(data)
    except ValidationError as error:
        raise RouterError(describe(error, str(path))) from error
    workers = tuple(Worker(**entry.model_dump()) for entry in found.workers)
    return Snapshot(workers, found.flows)
