"""Prompts computed on one engine and answered on another: vLLM's leases and SGLang's rooms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from tests.builders import profile_file
from tests.engines import EngineProcess, engine, post, stream

PREFILL_MS = 0.2  # per token
ISL = 1000
PROMPT_S = ISL * PREFILL_MS * 1e-3
LINK = ("--kv-latency-ms", 20, "--kv-bandwidth-gb-per-s", 1)
TRANSFER_S = 0.020 + ISL * 10_000 / 1e9
DECODE_S = 0.005
TIMER_S = 0.002  # timers go off a little early as well

Pair = tuple[EngineProcess, EngineProcess]
Use = Callable[[aiohttp.ClientSession], Awaitable[Any]]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A prefill and a decode worker."""
    profile = profile_file(
        prefill_ms=(((PREFILL_MS,),),), decode_ms=((1e3 * DECODE_S,),), kv_bytes_per_token=10_000
    )
    options = ("--profile", profile, *LINK)
    with (
        engine(*options, "--role", "prefill", "--kv-lease-s", 1) as prefill,
        engine(*options, "--role", "decode", "--room-timeout-s", 1) as decode,
    ):
        yield prefill, decode


def client(use: Use) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession() as session:
            return await asyncio.wait_for(use(session), 20)

    return asyncio.run(main())


def prompt(first: int) -> list[int]:
    """A prompt that no other test has."""
    return list(range(first * ISL, (first + 1) * ISL))


async def prefilled(session: aiohttp.ClientSession, prefill: EngineProcess, first: int) -> Any:
    """The `kv_transfer_params` of a prompt that a prefill worker has computed."""
    status, answer = await post(
        session,
        prefill,
        prompt=prompt(first),
        max_tokens=1,
        kv_transfer_params={"do_remote_decode": True, "do_remote_prefill": False},
    )
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 1
    return answer["kv_transfer_params"]


def computed(worker: EngineProcess) -> int:
    """Tokens of all prompts that a worker has not been handed."""
    name = "vllm:prefix_cache_queries_total{"
    lines = worker.get("/metrics")[1].splitlines()
    return int(float(next(line for line in lines if line.startswith(name)).split()[-1]))


async def seconds(answer: Awaitable[Any]) -> float:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await answer
    return loop.time() - began_s


class TestLeases:
    def test_the_answer_says_where_the_kv_cache_is(self, pair: Pair) -> None:
        params = client(lambda session: prefilled(session, pair[0], 1))
        assert params.pop("remote_request_id")
        assert params.pop("remote_block_ids") == list(range(-(-ISL // 16)))
        assert params == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": pair[0].ports["engine_id"],
            "remote_host": "127.0.0.1",
            "remote_port": pair[0].ports["side_channel_port"],
            "tp_size": 1,
        }

    def test_a_decode_worker_pulls_instead_of_computing(self, pair: Pair) -> None:
        async def use(session: aiohttp.ClientSession) -> float:
            params = await prefilled(session, pair[0], 2)
            answer = post(
                session, pair[1], prompt=prompt(2), max_tokens=2, kv_transfer_params=params
            )
            return await seconds(answer)

        before = computed(pair[1])
        assert client(use) >= TRANSFER_S + 2 * DECODE_S - TIMER_S
        assert computed(pair[1]) == before

    def test_a_stream_over_two_workers_is_whole(self, pair: Pair) -> None:
        async def use(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
            params = await prefilled(session, pair[0], 3)
            return await stream(
                session, pair[1], prompt=prompt(3), max_tokens=9, kv_transfer_params=params
            )

        words = [event["choices"][0]["text"] for event in client(use)]
        assert words == [f" {n:05d}" for n in range(1, 10)]

    @pytest.mark.parametrize("lost", ["engine", "request", "worker", "twice", "expired"])
    def test_a_kv_cache_that_is_gone_is_computed_again(self, pair: Pair, lost: str) -> None:
        first = 10 + ["engine", "request", "worker", "twice", "expired"].index(lost)

        async def use(session: aiohttp.ClientSession) -> int:
            params = await prefilled(session, pair[0], first)
            body = {"prompt": prompt(first), "max_tokens": 1}
            match lost:
                case "engine":
                    params["remote_engine_id"] = "of an earlier process"
                case "request":
                    params["remote_request_id"] = "another"
                case "worker":
                    params["remote_port"] = 1
                case "twice":
                    await post(session, pair[1], **body, kv_transfer_params=params)
                case "expired":
                    await asyncio.sleep(1.1)
            before = computed(pair[1])
            await post(session, pair[1], **body, kv_transfer_params=params)
            return computed(pair[1]) - before

        assert client(use) == ISL

    @pytest.mark.parametrize("which", [0, 1])
    def test_every_role_serves_a_plain_request(self, pair: Pair, which: int) -> None:
        events = client(lambda session: stream(session, pair[which], prompt="a b", max_tokens=3))
        assert len(events) == 3


class TestRooms:
    def body(self, pair: Pair, first: int, **more: Any) -> dict[str, Any]:
        return {
            "prompt": prompt(first),
            "max_tokens": 4,
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": pair[0].ports["bootstrap_port"],
            "bootstrap_room": first,
            **more,
        }

    @pytest.mark.parametrize("decode_first", [False, True])
    def test_the_decode_worker_waits_for_its_room(self, pair: Pair, decode_first: bool) -> None:
        body = self.body(pair, 20 + decode_first)

        async def use(session: aiohttp.ClientSession) -> tuple[float, Any]:
            workers = pair[::-1] if decode_first else pair
            took_s = asyncio.get_running_loop().time()
            tasks = {}
            for worker in workers:
                tasks[worker] = asyncio.ensure_future(post(session, worker, **body))
                await asyncio.sleep(0)
            (_, prefill), (status, decode) = await tasks[pair[0]], await tasks[pair[1]]
            assert status == 200
            assert prefill["usage"]["completion_tokens"] == 1
            return asyncio.get_running_loop().time() - took_s, decode

        before = computed(pair[1])
        taken_s, answer = client(use)
        assert answer["usage"]["completion_tokens"] == 4
        assert taken_s >= PROMPT_S + TRANSFER_S
        assert computed(pair[1]) == before

    def test_a_room_that_nobody_prefills_is_an_error(self, pair: Pair) -> None:
        status, answer = client(lambda session: post(session, pair[1], **self.body(pair, 30)))
        assert status == 500
        assert "room 30" in answer["error"]["message"]

    def test_in_a_stream_the_error_is_an_event(self, pair: Pair) -> None:
        events = client(lambda session: stream(session, pair[1], **self.body(pair, 31)))
        assert "room 31" in events[0]["error"]["message"]

    def test_a_prefill_that_is_given_up_fails_its_room(self, pair: Pair) -> None:
        body = self.body(pair, 32, prompt=list(range(20 * ISL)))  # 4 s

        async def use(session: aiohttp.ClientSession) -> int:
            decode = asyncio.ensure_future(post(session, pair[1], **body))
            prefill = asyncio.ensure_future(post(session, pair[0], **body))
            await asyncio.sleep(0.1)
            prefill.cancel()
            return (await decode)[0]

        assert client(use) == 500
