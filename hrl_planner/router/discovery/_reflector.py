"""One kind of Kubernetes object, mirrored: listed once, then watched.

A watch resumes where the last one ended (`resourceVersion`); a server that has forgotten that
place answers 410, and then all is listed anew. Errors are waited out, longer each time, and the
last state stays. Objects are the plain data the server sends: a field that this version of the
client does not know is still there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

_log = logging.getLogger(__name__)

Json = dict[str, Any]
# Makes the list call of an API, given its query; returns the raw response.
ListCall = Callable[..., Awaitable[aiohttp.ClientResponse]]

# A watch ends by itself after this long; a dead connection is not believed much longer.
_WATCH_S = 60
_LIST_TIMEOUT_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0


class _Gone(Exception):
    """The server has forgotten the resource version."""


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status


class Reflector:
    """Mirrors what a list call returns.

    Args:
        what: for log lines.
        call: the list call, bound to everything but list and watch options.
        may_be_absent: whether a server without this kind of object has simply none of them.
    """

    def __init__(self, what: str, call: ListCall, *, may_be_absent: bool = False) -> None:
        self._what = what
        self._call = call
        self._may_be_absent = may_be_absent
        self._objects: dict[str, Json] = {}
        self._version: str | None = None

    async def states(self) -> AsyncIterator[dict[str, Json]]:
        """Yield name -> object: at first, and after every change; the mapping is one and the same.

        It never ends, whatever the server does.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if self._version is None:
                    await self._list()
                    yield self._objects
                async for _ in self._watch():
                    pause_s = _FIRST_PAUSE_S
                    yield self._objects
                pause_s = _FIRST_PAUSE_S
                continue
            except _Gone:
                _log.info("%s: the place in the watch is lost, listing anew", self._what)
                self._version = None
                continue
            except _Refused as error:
                if error.status == 404 and self._may_be_absent:
                    pause_s = _LONGEST_PAUSE_S
                    self._objects.clear()
                    yield self._objects
                else:
                    self._complain(error, pause_s)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self._complain(error, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _complain(self, error: Exception, pause_s: float) -> None:
        _log.warning("%s: %s; again in %.1f s", self._what, error or repr(error), pause_s)

    async def _list(self) -> None:
        async with await self._call(_request_timeout=_LIST_TIMEOUT_S) as response:
            await _check(response)
            found: Json = json.loads(await response.read())
        self._objects.clear()
        self._objects.update((item["metadata"]["name"], item) for item in found["items"])
        self._version = found["metadata"]["resourceVersion"]

    async def _watch(self) -> AsyncIterator[None]:
        response = await self._call(
            watch=True,
            resource_version=self._version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_S,
            _request_timeout=_WATCH_S + 15.0,
        )
        async with response:
            await _check(response)
            async for line in _lines(response):
                if self._take(json.loads(line)):
                    yield

    def _take(self, event: Json) -> bool:
        """Apply an event; returns whether an object changed."""
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            status = int(item.get("code", 500))
            raise _Gone if status == 410 else _Refused(status, str(item.get("message", "")))
        self._version = item["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return False
        name = item["metadata"]["name"]
        if kind == "DELETED":
            self._objects.pop(name, None)
        else:
            self._objects[name] = item
        return True


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
