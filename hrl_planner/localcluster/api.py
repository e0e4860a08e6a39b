"""The API as JSON over aiohttp, for the kubelet alone: lists, watches and a few writes.

Raw dictionaries, because ten thousand pods as typed objects take the generated client minutes of
processor time. A watch outlives the API server: it lists anew whenever the stream breaks, so a
consumer that acts on what it sees, and not on the kind of event, misses nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Literal

import aiohttp

from hrl_planner.errors import KubeError
from hrl_planner.localcluster.credentials import ADMIN, Credentials

Object = dict[str, Any]
EventKind = Literal["LISTED", "ADDED", "MODIFIED", "DELETED"]

STRATEGIC_MERGE = "application/strategic-merge-patch+json"

_log = logging.getLogger(__name__)
_RECONNECT_S = 0.2
# The server ends a watch after this long; a stream that broke without a word is noticed by then.
_WATCH_S = 240
_CONNECTIONS = 32
# What a server that is killed leaves its clients with; half a line of JSON is a ValueError.
_CUT_OFF = (aiohttp.ClientError, TimeoutError, ValueError)


class Refused(KubeError):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A connection to the API server as administrator; an async context manager."""

    def __init__(self, credentials: Credentials) -> None:
        self._server = credentials.server
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=ssl.create_default_context(cafile=str(credentials.ca)), limit=_CONNECTIONS
            ),
            headers={"Authorization": f"Bearer {credentials.tokens[ADMIN]}"},
            timeout=aiohttp.ClientTimeout(total=30.0),
            read_bufsize=2**20,
        )

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One request.

        Raises:
            Refused: the server answered with an error.
            aiohttp.ClientError, TimeoutError, ValueError: it did not answer, or not to the end.
        """
        async with self._session.request(
            method,
            self._server + path,
            data=None if body is None else json.dumps(body),
            params=query,
            headers={"Content-Type": content_type},
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise Refused(response.status, f"{method} {path}: {response.status} {text}")
            answer: Object = json.loads(text)
            return answer

    async def call_until_answered(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> Object:
        """One request, repeated for as long as the server cannot be reached or is not itself."""
        while True:
            try:
                return await self.call(method, path, body, content_type=content_type)
            except Refused as error:
                if error.status < 500 and error.status != 429:
                    raise
                _log.info("%s", error)
            except _CUT_OFF as error:
                _log.info("%s %s: %s", method, path, error)
            await asyncio.sleep(_RECONNECT_S)

    async def watch(self, path: str, field_selector: str) -> AsyncIterator[tuple[EventKind, Any]]:
        """All objects there are as ("LISTED", list), then each change; again after every break."""
        query = {"fieldSelector": field_selector}
        while True:
            try:
                listed = await self.call("GET", path, query=query)
                yield "LISTED", listed["items"]
                async for event in self._stream(path, query, listed["metadata"]["resourceVersion"]):
                    yield event
            except (*_CUT_OFF, Refused) as error:
                _log.info("watch %s: %s", path, error)
            await asyncio.sleep(_RECONNECT_S)

    async def _stream(
        self, path: str, query: Mapping[str, str], version: str
    ) -> AsyncIterator[tuple[EventKind, Object]]:
        """Changes since a version, until the stream breaks or the version is too old."""
        while True:
            async with self._session.get(
                self._server + path,
                params={
                    **query,
                    "watch": "true",
                    "resourceVersion": version,
                    "allowWatchBookmarks": "true",
                    "timeoutSeconds": str(_WATCH_S),
                },
                timeout=aiohttp.ClientTimeout(total=None, sock_read=_WATCH_S + 30),
            ) as response:
                response.raise_for_status()
                try:
                    async for line in response.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            raise Refused(event["object"].get("code", 500), str(event["object"]))
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["type"], event["object"]
                finally:
                    # An orderly end of TLS waits for the server, and the loop may close before.
                    if response.connection and response.connection.transport:
                        response.connection.transport.abort()
