"""One kind of Kubernetes object, mirrored: listed once, then watched.

A watch resumes where the last one ended (`resourceVersion`); a server that has forgotten that
place answers 410, and then all is listed anew. Errors are waited out, longer each time, and the
last state stays; how long ago it was known to be the present one, `behind_s` tells. Of each object
(the plain data the server sends) only what the reader makes of it is kept: ten thousand whole pods
would take hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Generic, TypeVar

import aiohttp

_log = logging.getLogger(__name__)

Json = dict[str, Any]
Kept = TypeVar("Kept")
# Makes the list call of an API, given its query; returns the raw response.
ListCall = Callable[..., Awaitable[aiohttp.ClientResponse]]

# A watch ends by itself after this long; a dead connection is not believed much longer.
_WATCH_S = 30
_WATCH_GRACE_S = 10.0
_LIST_TIMEOUT_S = 60.0
_PAGE = 500
_FIRST_PAUSE_S = 0.2
# Whoever waits for a server that was away must not sleep long after it is back; one that knows
# what it was asked, and refuses, will still refuse in a moment.
_LONGEST_PAUSE_S = 5.0
_LONGEST_PAUSE_REFUSED_S = 30.0


class _Gone(Exception):
    """The server has forgotten the resource version."""


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status


class Reflector(Generic[Kept]):
    """Mirrors what a list call returns.

    Args:
        what: for log lines.
        call: the list call, bound to everything but list and watch options.
        keep: what is kept of an object; None for nothing.
        may_be_absent: whether a server without this kind of object has simply none of them.
    """

    def __init__(
        self,
        what: str,
        call: ListCall,
        keep: Callable[[Json], Kept | None],
        *,
        may_be_absent: bool = False,
    ) -> None:
        self._what = what
        self._call = call
        self._keep = keep
        self._may_be_absent = may_be_absent
        self._objects: dict[str, Kept] = {}
        self._version: str | None = None
        self._connected = False
        self._heard_s = -math.inf
        self._complaint = ""

    @property
    def objects(self) -> dict[str, Kept]:
        """What is kept, by name: a new mapping after every list, the same one until then."""
        return self._objects

    def behind_s(self) -> float:
        """How long ago this was certainly the present state; infinite before the first list.

        Zero while a watch is open: one whose connection has died unnoticed is open for up to
        `_WATCH_S + _WATCH_GRACE_S`.
        """
        return 0.0 if self._connected else time.monotonic() - self._heard_s

    async def changes(self) -> AsyncIterator[Collection[str]]:
        """Yield names of objects that came, changed or went: at first all, then after each change.

        It never ends, whatever the server does.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            longest_s = _LONGEST_PAUSE_S
            try:
                if self._version is None:
                    yield await self._list()
                async for name in self._watch():
                    pause_s = _FIRST_PAUSE_S
                    if name is not None:
                        yield (name,)
                pause_s = _FIRST_PAUSE_S
                continue
            except _Gone:
                _log.info("%s: the place in the watch is lost, listing anew", self._what)
                self._version = None
                continue
            except _Refused as error:
                if error.status in (401, 403, 404):
                    longest_s = _LONGEST_PAUSE_REFUSED_S
                if error.status == 404 and self._may_be_absent:
                    pause_s = longest_s
                    yield self._replace({})
                else:
                    self._complain(error, pause_s)
            except Exception as error:  # whatever it was, the next list or watch may go well
                self._complain(error, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, longest_s)

    def _complain(self, error: Exception, pause_s: float) -> None:
        plain = isinstance(error, (_Refused, aiohttp.ClientError, OSError))
        complaint = (plain and str(error)) or repr(error)
        level = logging.DEBUG if complaint == self._complaint else logging.WARNING
        self._complaint = complaint
        _log.log(level, "%s: %s; again in %.1f s", self._what, complaint, pause_s)

    async def _list(self) -> Collection[str]:
        """Read all, page by page; every page shows the state at the version of the first."""
        kept: dict[str, Kept] = {}
        token: str | None = None
        while True:
            async with await self._call(
                limit=_PAGE, _continue=token, _request_timeout=_LIST_TIMEOUT_S
            ) as response:
                await _check(response)
                found: Json = json.loads(await response.read())
            for item in found["items"]:
                thing = self._keep(item)
                if thing is not None:
                    kept[item["metadata"]["name"]] = thing
            token = found["metadata"].get("continue")
            if not token:
                break
        self._version = found["metadata"]["resourceVersion"]
        return self._replace(kept)

    def _replace(self, kept: dict[str, Kept]) -> Collection[str]:
        names = self._objects.keys() | kept.keys()
        self._objects = kept
        self._heard_s = time.monotonic()
        return names

    async def _watch(self) -> AsyncIterator[str | None]:
        """Yield the name of every object that changed, and None for what changes none."""
        response = await self._call(
            watch=True,
            resource_version=self._version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_S,
            _request_timeout=_WATCH_S + _WATCH_GRACE_S,
        )
        async with response:
            await _check(response)
            self._connected, self._complaint = True, ""
            try:
                async for line in _lines(response):
                    yield self._take(json.loads(line))
            finally:
                self._connected, self._heard_s = False, time.monotonic()

    def _take(self, event: Json) -> str | None:
        """Apply an event; returns the name of the object that changed, if one did."""
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            status = int(item.get("code", 500))
            raise _Gone if status == 410 else _Refused(status, str(item.get("message", "")))
        version: str = item["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            self._version = version
            return None
        name: str = item["metadata"]["name"]
        thing = None if kind == "DELETED" else self._keep(item)
        # Only now: of an event that fails, the next watch tells again.
        self._version = version
        if thing is None:
            return None if self._objects.pop(name, None) is None else name
        self._objects[name] = thing
        return name


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == 410:
        raise _Gone
    if response.status >= 400:
        raise _Refused(response.status, (await response.text())[:200])


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length, where aiohttp's own reader stops at 128 kB."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
