"""An HTTP server that speaks enough of the Kubernetes API to list and watch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

Json = dict[str, Any]


class ToyKubernetes:
    """Objects by collection path; changes go to every watch of that path.

    Attributes:
        requests: (path, query) of every list and watch.
        refuse_with: status that all requests get while it is set.
        forgotten: watches from a version up to this one get 410.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Json]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.refuse_with: int | None = None
        self.forgotten = 0
        self.version = 100
        self._log: dict[str, list[tuple[int, Json]]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Condition()

    def serves(self, path: str) -> None:
        """Make a collection exist, with nothing in it."""
        self.objects.setdefault(path, {})
        self._log.setdefault(path, [])

    async def put(self, path: str, item: Json) -> None:
        self.serves(path)
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in self.objects[path] else "ADDED"
        await self._record(path, kind, item)
        self.objects[path][name] = item

    async def delete(self, path: str, name: str) -> None:
        await self._record(path, "DELETED", self.objects[path].pop(name))

    async def _record(self, path: str, kind: str, item: Json) -> None:
        async with self._changed:
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            # What a watch has sent does not change with the object.
            sent = json.loads(json.dumps({"type": kind, "object": item}))
            self._log[path].append((self.version, sent))
            self._changed.notify_all()

    async def say(self, path: str, event: Json) -> None:
        """Send an event of any kind to the watches of a path."""
        async with self._changed:
            self.version += 1
            self._log[path].append((self.version, event))
            self._changed.notify_all()

    def cut(self) -> None:
        """Break every watch off."""
        for stream in self._streams:
            stream.cancel()

    def watches(self) -> int:
        return len(self._streams)

    async def start(self) -> str:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        self.cut()
        await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        self.requests.append((path, query))
        if self.refuse_with is not None:
            return _status(self.refuse_with)
        if path not in self.objects:
            return _status(404)
        if query.get("watch") in ("true", "True"):
            return await self._watch(request, path, int(query["resourceVersion"]))
        items = [item for item in self.objects[path].values() if _selected(item, query)]
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": items}
        )

    async def _watch(self, request: web.Request, path: str, version: int) -> web.StreamResponse:
        if version < self.forgotten:
            return _status(410)
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.ensure_future(self._send(response, path, version))
        self._streams.add(task)
        try:
            await task
        except asyncio.CancelledError:
            assert request.transport is not None
            request.transport.abort()
        finally:
            self._streams.discard(task)
        return response

    async def _send(self, response: web.StreamResponse, path: str, version: int) -> None:
        sent = sum(at <= version for at, _ in self._log[path])
        while True:
            async with self._changed:
                while sent == len(self._log[path]):
                    await self._changed.wait()
                events = self._log[path][sent:]
            sent += len(events)
            for _, event in events:
                await response.write(json.dumps(event).encode() + b"\n")


def _selected(item: Json, query: dict[str, str]) -> bool:
    field = query.get("fieldSelector", "")
    if field and field != f"metadata.name={item['metadata']['name']}":
        return False
    label = query.get("labelSelector", "")
    return not label or label in item["metadata"].get("labels", {})


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": "toy"}, status=code)
