"""The OpenAI server in front of an engine.

A handler reads a body, makes a job of it, hands it to the engine and waits for its last token; the
tokens between are written by the engine's step through `TokenStream`. A client that goes away
cancels its handler, and that cancels the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import HttpVersion11, web

from hrl_planner.mock_engine.answers import Answer, Outbox, TokenStream
from hrl_planner.mock_engine.asks import ApiError, Ask, decode_body, parse
from hrl_planner.mock_engine.engine import Engine, Job
from hrl_planner.mock_engine.faults import Faults
from hrl_planner.mock_engine.handoff import Leases, Peers, Rooms, transfer_params
from hrl_planner.mock_engine.identity import Identity, Life
from hrl_planner.mock_engine.kv_events import EventPublisher, block_hashes
from hrl_planner.mock_engine.metrics import CONTENT_TYPE, EngineMetrics
from hrl_planner.prompt import PromptTokenizer, prompt_ids_async

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 256 * 2**20
_REQUEST_ID = "X-Request-Id"


@dataclass(frozen=True)
class Link:
    """The way of a KV cache to this engine."""

    latency_s: float
    s_per_token: float

    def seconds(self, isl: int) -> float:
        """Return how long a prompt's KV cache takes."""
        return self.latency_s + isl * self.s_per_token


@dataclass
class Parts:
    """Everything a request meets."""

    identity: Identity
    engine: Engine
    tokenizer: PromptTokenizer
    metrics: EngineMetrics
    leases: Leases
    rooms: Rooms
    peers: Peers
    link: Link
    outbox: Outbox
    events: EventPublisher | None = None
    life: Life = Life.STARTING
    in_flight: int = 0  # requests let in and not answered to the end
    side_channel_port: int = 0
    faults: Faults = field(default_factory=Faults)
    on_faults: Callable[[Faults], None] | None = None  # None where faults are not allowed
    die: Callable[[], None] | None = None


class OpenAIServer:
    """Routes of one engine.

    Args:
        parts: what it serves with; `life`, `side_channel_port` and `faults` change while it runs.
    """

    def __init__(self, parts: Parts) -> None:
        """Hold the parts."""
        self._parts = parts

    def app(self) -> web.Application:
        """Return the application of the engine's port."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/completions", partial(self._answer, False)),
                web.post("/v1/chat/completions", partial(self._answer, True)),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.get("/version", self._version),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
            ]
        )
        if self._parts.on_faults is not None:
            app.add_routes([web.get("/fault", self._faults), web.post("/fault", self._set_faults)])
        return app

    def bootstrap_app(self) -> web.Application:
        """Return the application of the bootstrap port, where decode workers wait for rooms."""
        app = web.Application()
        app.add_routes([web.get("/rooms/{room:\\d+}", self._room)])
        return app

    # ---- completions

    async def _answer(self, chat: bool, request: web.Request) -> web.StreamResponse:
        request_id = request.headers.get(_REQUEST_ID) or uuid.uuid4().hex
        self._parts.in_flight += 1
        try:
            self._admit()
            body = decode_body(await request.read())
            token_ids = await self._token_ids(chat, body)
            ask = parse(body, len(token_ids), self._parts.identity)
            answer = Answer(
                chat=chat,
                request_id=request_id,
                model=self._parts.identity.model,
                isl=len(token_ids),
                osl=ask.osl,
            )
            if ask.stream:
                return await self._stream(request, request_id, token_ids, ask, answer)
            return await self._whole(request_id, token_ids, ask, answer)
        except ApiError as error:
            return web.json_response(
                error.body(), status=error.status, headers={_REQUEST_ID: request_id}
            )
        finally:
            self._parts.in_flight -= 1

    def _admit(self) -> None:
        life, faults = self._parts.life, self._parts.faults
        if life is not Life.READY:
            raise ApiError(503, f"The engine is {life.value}.", "ServiceUnavailableError")
        if faults.error and random.random() < faults.error:
            raise ApiError(500, "Injected fault.", "InternalServerError")

    async def _token_ids(self, chat: bool, body: dict[str, Any]) -> list[int]:
        field = "messages" if chat else "prompt"
        if body.get(field) is None:
            raise ApiError(400, f"Missing required parameter: '{field}'.")
        try:
            return await prompt_ids_async(self._parts.tokenizer, body)
        except ValueError as error:
            raise ApiError(400, str(error)) from error

    async def _whole(
        self, request_id: str, token_ids: list[int], ask: Ask, answer: Answer
    ) -> web.Response:
        job, ended = self._job(token_ids, ask)
        await self._run(job, ask, ended)
        more = self._handed_over(job) if ask.hands_over and ask.room is None else {}
        return web.Response(
            body=answer.complete(job.cached_tokens, **more),
            content_type="application/json",
            headers={_REQUEST_ID: request_id},
        )

    async def _stream(
        self,
        request: web.Request,
        request_id: str,
        token_ids: list[int],
        ask: Ask,
        answer: Answer,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={_REQUEST_ID: request_id, "Cache-Control": "no-cache"}
        )
        response.content_type = "text/event-stream"
        chunked = request.version >= HttpVersion11
        if chunked:
            response.enable_chunked_encoding()
        await response.prepare(request)
        assert request.transport is not None
        stream = TokenStream(answer, request.transport, chunked, self._parts.outbox)
        job, _ = self._job(token_ids, ask)
        job.on_token = self._mortal(stream.token)
        try:
            await self._run(job, ask, stream.ended)
            tail = answer.usage_event(job.cached_tokens) if ask.include_usage else b""
        except ApiError as error:  # too late for another status
            tail = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
        await response.write(tail + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _job(self, token_ids: list[int], ask: Ask) -> tuple[Job, asyncio.Future[None]]:
        """Return a job that resolves a future with its last token."""
        identity = self._parts.identity
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_token(n: int) -> None:
            if n == ask.osl and not ended.done():
                ended.set_result(None)

        isl = len(token_ids)
        job = Job(
            isl=isl,
            osl=ask.osl,
            blocks=(),
            kv_blocks=-(-(isl + ask.osl) // identity.block_size),
            decodes_here=not ask.hands_over,
            token_ids=token_ids,
            transfer_s=self._parts.link.seconds(isl),
            on_token=on_token,
        )
        return job, ended

    def _mortal(self, on_token: Callable[[int], None]) -> Callable[[int], None]:
        """Return the callback as it is, or one that kills the process after some tokens."""
        after, die = self._parts.faults.die_after, self._parts.die
        if after is None or die is None:
            return on_token

        def until_death(n: int) -> None:
            if n <= after:
                on_token(n)
            if n == after:
                die()

        return until_death

    async def _run(self, job: Job, ask: Ask, ended: asyncio.Future[None]) -> None:
        """Have the engine do a job, by whichever way its KV cache comes."""
        parts = self._parts
        room = ask.room if ask.hands_over else None
        done = False
        try:
            if await self._is_prefilled_elsewhere(ask):
                parts.engine.receive(job)
            else:
                # Only prompts that are computed here meet the prefix cache.
                job.blocks = block_hashes(job.token_ids, parts.identity.block_size)
                parts.engine.compute(job)
            await ended
            done = True
        except asyncio.CancelledError:
            parts.metrics.on_abort()
            raise
        finally:
            if not done:
                parts.engine.cancel(job)
            if room is not None:
                parts.rooms.finish(room.room, done)

    async def _is_prefilled_elsewhere(self, ask: Ask) -> bool:
        if ask.remote is not None:
            if await self._parts.peers.claim(ask.remote):
                return True
            log.warning(
                "no KV cache of %s at engine %s; computing the prompt here",
                ask.remote.request_id,
                ask.remote.engine_id,
            )
            return False
        if ask.room is None or ask.hands_over:
            return False
        if not await self._parts.peers.meet(ask.room):
            raise ApiError(
                500,
                f"Prefill of bootstrap room {ask.room.room} at {ask.room.host}:{ask.room.port} "
                "failed or did not end in time.",
                "InternalServerError",
            )
        return True

    def _handed_over(self, job: Job) -> dict[str, Any]:
        parts, identity = self._parts, self._parts.identity
        request_id = uuid.uuid4().hex
        parts.leases.grant(request_id)
        n_blocks = -(-job.isl // identity.block_size)
        params = transfer_params(
            parts.leases,
            request_id,
            n_blocks,
            identity.address,
            parts.side_channel_port,
            identity.tp_size,
        )
        return {"kv_transfer_params": params}

    # ---- between workers

    async def _room(self, request: web.Request) -> web.Response:
        # The decode worker's own timeout ends this: it closes the connection.
        done = await self._parts.rooms.wait(int(request.match_info["room"]))
        return web.Response(status=200 if done else 404)

    # ---- the rest

    async def _models(self, request: web.Request) -> web.Response:
        identity = self._parts.identity
        card = {
            "id": identity.model,
            "object": "model",
            "created": 0,
            "owned_by": "hrl-planner",
            "root": identity.model,
            "parent": None,
            "max_model_len": identity.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _health(self, request: web.Request) -> web.Response:
        ready = self._parts.life is Life.READY
        return web.Response(status=200 if ready else 503, text="" if ready else "not ready")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._parts.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": f"hrl-planner {version('hrl-planner')}"})

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        self._parts.engine.worker.cache.clear()
        if self._parts.events is not None:
            self._parts.events.on_clear()
        return web.Response()

    async def _faults(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._parts.faults)
        return web.Response(body=body, content_type="application/json")

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            faults = msgspec.json.decode(await request.read(), type=Faults)
        except msgspec.MsgspecError as error:
            return web.json_response(ApiError(400, str(error)).body(), status=400)
        assert self._parts.on_faults is not None
        self._parts.on_faults(faults)
        return await self._faults(request)
