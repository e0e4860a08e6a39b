"""The hand-off from a prefill to a decode worker, in the words of the engine that serves.

vLLM (NixlConnector): the prefill worker is asked for one token with `do_remote_decode`; its answer
carries `kv_transfer_params`, which the decode worker gets in its own request and pulls the KV cache
by. SGLang: both workers get the request at once with the same bootstrap room and meet there.

Only prompts pass here. The tokens of the answer go from the decode worker through Envoy.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import msgspec

from hrl_planner.router.config import HandoffConfig
from hrl_planner.router.discovery import Worker
from hrl_planner.router.request import Call, all_fields

# Servers drop idle connections after some seconds (uvicorn: 5); ours must go first.
_KEEP_ALIVE_S = 3.0
# Time in which a refused connection shows, before an SGLang decode worker is bound to wait for it.
_REFUSED_WITHIN_S = 0.02
_ROOMS = 1 << 63


class PrefillError(Exception):
    """A prefill worker did not do it.

    Attributes:
        status: its HTTP status, 0 when it did not answer.
        body: its answer, for the client where the request itself is at fault.
    """

    def __init__(self, reason: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.body = body

    @property
    def is_the_clients(self) -> bool:
        """Whether every worker would refuse this request."""
        return 400 <= self.status < 500 and self.status not in (408, 425, 429)


class Handoff:
    """Calls prefill workers; one connection pool for all of them."""

    def __init__(self, config: HandoffConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[bytes]] = set()

    async def start(self) -> None:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=self._config.prefill_timeout_s, connect=self._config.connect_timeout_s
            ),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close it; prompts under way are given up."""
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def through_vllm(self, worker: Worker, call: Call) -> bytes:
        """Let a vLLM worker compute a prompt; return the body for the decode worker.

        Raises:
            PrefillError: the worker failed or refused.
            Refusal: 400, nobody could read the body.
        """
        body = all_fields(call)
        first = {
            **body,
            "stream": False,
            "max_tokens": 1,
            "kv_transfer_params": {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "remote_engine_id": None,
                "remote_block_ids": None,
                "remote_host": None,
                "remote_port": None,
            },
        }
        first.pop("stream_options", None)
        if "max_completion_tokens" in first:
            first["max_completion_tokens"] = 1
        if "min_tokens" in first:
            first["min_tokens"] = 1
        answer = await self._post(worker, call, first)
        try:
            params = msgspec.json.decode(answer)["kv_transfer_params"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise PrefillError(f"{worker.name} answered without kv_transfer_params") from None
        return msgspec.json.encode({**body, "kv_transfer_params": params})

    async def through_sglang(self, worker: Worker, call: Call) -> tuple[bytes, asyncio.Task[bytes]]:
        """Start a prompt at an SGLang worker; return the decode worker's body, and the prompt.

        Raises:
            PrefillError: the worker did not take it.
            Refusal: 400, nobody could read the body.
        """
        if worker.bootstrap is None:
            raise PrefillError(f"{worker.name} has no bootstrap address")
        host, _, port = worker.bootstrap.rpartition(":")
        body = {
            **all_fields(call),
            "bootstrap_host": host,
            "bootstrap_port": int(port),
            "bootstrap_room": random.randrange(_ROOMS),
        }
        task = asyncio.create_task(self._post(worker, call, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=_REFUSED_WITHIN_S)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done and task.exception() is not None:
            raise PrefillError(str(task.exception()))
        return msgspec.json.encode(body), task

    async def _post(self, worker: Worker, call: Call, body: dict[str, Any]) -> bytes:
        assert self._session is not None, "not started"
        headers = {"content-type": "application/json", "x-request-id": call.request_id}
        if call.trace:
            headers["traceparent"] = call.trace
        url = f"http://{worker.address}{call.path}"
        data = msgspec.json.encode(body)
        for again in (True, False):
            try:
                async with self._session.post(url, data=data, headers=headers) as response:
                    answer = await response.read()
                    if response.status != 200:
                        raise PrefillError(
                            f"{worker.name} answered {response.status}", response.status, answer
                        )
                    return answer
            except aiohttp.ServerDisconnectedError:
                # Most likely an idle connection that the server closed as we took it.
                if not again:
                    raise PrefillError(f"{worker.name} hung up") from None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = f"{worker.name}: {type(error).__name__}: {error}"
                raise PrefillError(reason) from None
        raise AssertionError("unreachable")
