"""What a client of a mock engine sees: OpenAI's API, usage, metrics, KV events."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import linear_profile
from tests.engines import MODEL, EngineProcess, engine, post, stream

BLOCK = 16
KV_TOKENS = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[EngineProcess]:
    """One engine for all tests here; each uses prompts of its own."""
    profile = linear_profile(0.01, decode_ms=2.0, kv_capacity_tokens=KV_TOKENS)
    options = ("--kv-events-port", 0, "--kv-replay-port", 0, "--kv-events-topic", "kv")
    with engine("--profile", profile, "--default-osl", 5, *options) as running:
        yield running


def client(use: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """Run a coroutine function with an HTTP session."""

    async def main() -> Any:
        async with aiohttp.ClientSession() as session:
            return await use(session)

    return asyncio.run(main())


def ask(server: EngineProcess, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
    return client(lambda session: post(session, server, path, **body))


def metrics(server: EngineProcess) -> dict[str, float]:
    """Every sample by name, summed over finished_reason and without the bucket series."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")[1]):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return samples


class TestCompletions:
    def test_an_answer_has_exactly_as_many_tokens_as_were_asked_for(
        self, server: EngineProcess
    ) -> None:
        status, answer = ask(server, prompt="one two three", max_tokens=7, ignore_eos=True)
        assert status == 200
        assert answer["object"] == "text_completion"
        assert answer["model"] == MODEL
        assert answer["choices"][0]["text"].split() == [f"{n:05d}" for n in range(1, 8)]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 7,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    @pytest.mark.parametrize("chat", [False, True])
    @pytest.mark.parametrize("osl", [1, 2, 6])
    def test_a_stream_has_one_event_per_token(
        self, server: EngineProcess, chat: bool, osl: int
    ) -> None:
        prompt = {"messages": [{"role": "user", "content": "hello"}]} if chat else {"prompt": "hi"}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        field = "max_completion_tokens" if chat else "max_tokens"
        body = {**prompt, field: osl, "stream_options": {"include_usage": True}}
        *tokens, usage = client(lambda session: stream(session, server, path, **body))
        choices = [event["choices"][0] for event in tokens]
        words = [(c["delta"]["content"] if chat else c["text"]) for c in choices]
        assert words == [f" {n:05d}" for n in range(1, osl + 1)]
        assert [c["finish_reason"] for c in choices] == [None] * (osl - 1) + ["length"]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == osl
        if chat:
            assert choices[0]["delta"]["role"] == "assistant"
            assert all("role" not in choice["delta"] for choice in choices[1:])

    def test_the_answer_names_the_request(self, server: EngineProcess) -> None:
        async def use(session: aiohttp.ClientSession) -> None:
            body = {"prompt": "a", "max_tokens": 2, "stream": True}
            headers = {"X-Request-Id": "mine"}
            async with session.post(
                server.url + "/v1/completions", json=body, headers=headers
            ) as answer:
                assert answer.headers["X-Request-Id"] == "mine"
                assert b'"id":"cmpl-mine"' in await answer.content.readline()

        client(use)

    def test_an_http_1_0_client_gets_a_stream_without_chunks(self, server: EngineProcess) -> None:
        body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": True})
        with socket.create_connection(("127.0.0.1", server.ports["port"])) as connection:
            head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        _, _, events = answer.partition(b"\r\n\r\n")
        assert events.startswith(b"data: {")
        assert events.count(b"data: ") == 4
        assert events.endswith(b"data: [DONE]\n\n")

    def test_a_prompt_may_be_token_ids(self, server: EngineProcess) -> None:
        assert ask(server, prompt=[5] * 33)[1]["usage"]["prompt_tokens"] == 33
        assert ask(server, prompt=[[5] * 34])[1]["usage"]["prompt_tokens"] == 34

    def test_without_a_maximum_the_answer_has_the_default_length(
        self, server: EngineProcess
    ) -> None:
        assert ask(server, prompt="a")[1]["usage"]["completion_tokens"] == 5
        nearly_full = ask(server, prompt=[1] * (KV_TOKENS - 2))[1]
        assert nearly_full["usage"]["completion_tokens"] == 2

    def test_a_prompt_seen_before_is_cached_up_to_its_last_full_block(
        self, server: EngineProcess
    ) -> None:
        prompt = list(range(10_000, 10_000 + 5 * BLOCK + 3))
        cached = [
            ask(server, prompt=tokens)[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
            for tokens in (prompt, prompt, prompt[: 2 * BLOCK], [*prompt[: 3 * BLOCK], 7])
        ]
        # A prompt of nothing but cached blocks still computes its last token.
        assert cached == [0, 5 * BLOCK, 2 * BLOCK - 1, 3 * BLOCK]

    def test_a_client_that_goes_away_frees_its_place(self, server: EngineProcess) -> None:
        async def use(session: aiohttp.ClientSession) -> None:
            body = {"prompt": "a", "max_tokens": 3000, "stream": True}
            async with session.post(server.url + "/v1/completions", json=body) as answer:
                await answer.content.readline()
                assert metrics(server)["vllm:num_requests_running"] == 1
            aborted = 0.0
            while not aborted:
                async with session.get(server.url + "/metrics") as answer:
                    text = await answer.text()
                aborted = sum(
                    sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.labels.get("finished_reason") == "abort"
                )

        client(lambda session: asyncio.wait_for(use(session), 10))
        after = metrics(server)
        assert after["vllm:num_requests_running"] == 0
        assert after["vllm:kv_cache_usage_perc"] == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            ({"prompt": "a", "model": "other"}, 404, "`other` does not exist"),
            ({"prompt": "a", "n": 2}, 400, "n must be 1"),
            ({"prompt": "a", "max_tokens": 0}, 400, "at least 1"),
            ({"prompt": "a", "max_tokens": "many"}, 400, "max_tokens"),
            ({"prompt": ""}, 400, "empty"),
            ({"prompt": ["a", "b"]}, 400, "one prompt per request"),
            ({}, 400, "'prompt'"),
            ({"messages": [{"role": "user", "content": "a"}]}, 400, "'prompt'"),
            ({"prompt": "a", "max_tokens": KV_TOKENS}, 400, "maximum context length is 4096"),
            ({"prompt": [1] * KV_TOKENS}, 400, "maximum context length is 4096"),
            (
                {"prompt": "a", "max_tokens": 2, "kv_transfer_params": {"do_remote_decode": True}},
                400,
                "needs max_tokens 1, got 2",
            ),
            (
                {"prompt": "a", "kv_transfer_params": {"do_remote_prefill": True}},
                400,
                "remote_engine_id",
            ),
        ],
    )
    def test_a_bad_request_is_told_what_is_wrong(
        self, server: EngineProcess, body: dict[str, Any], status: int, message: str
    ) -> None:
        got, answer = ask(server, **body)
        assert got == status
        assert message in answer["error"]["message"]
        assert answer["error"]["code"] == status

    def test_a_body_that_is_not_json(self, server: EngineProcess) -> None:
        async def use(session: aiohttp.ClientSession) -> None:
            async with session.post(server.url + "/v1/completions", data=b"{") as answer:
                assert answer.status == 400
                assert "Invalid JSON" in (await answer.json())["error"]["message"]

        client(use)

    def test_faults_are_not_served_unless_allowed(self, server: EngineProcess) -> None:
        assert server.get("/fault")[0] == 404


class TestIntrospection:
    def test_models_health_and_version(self, server: EngineProcess) -> None:
        card = json.loads(server.get("/v1/models")[1])["data"][0]
        assert (card["id"], card["max_model_len"]) == (MODEL, KV_TOKENS)
        assert server.get("/health")[0] == 200
        assert "version" in json.loads(server.get("/version")[1])

    def test_metrics_count_what_was_served(self, server: EngineProcess) -> None:
        before = metrics(server)
        prompt = list(range(20_000, 20_000 + 2 * BLOCK + 1))

        async def use(session: aiohttp.ClientSession) -> None:
            await post(session, server, prompt=prompt, max_tokens=4)
            await post(session, server, prompt=prompt, max_tokens=1)

        client(use)
        after = metrics(server)
        grown = {name: after[name] - before.get(name, 0.0) for name in after}
        expected = {
            "vllm:prompt_tokens_total": 66,
            "vllm:generation_tokens_total": 5,
            "vllm:prefix_cache_queries_total": 66,
            "vllm:prefix_cache_hits_total": 32,
            "vllm:request_success_total": 2,
            "vllm:num_preemptions_total": 0,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 3,
            "vllm:time_per_output_token_seconds_count": 3,
            "vllm:e2e_request_latency_seconds_count": 2,
            "vllm:request_queue_time_seconds_count": 2,
            "vllm:request_prompt_tokens_sum": 66,
            "vllm:request_generation_tokens_sum": 5,
        }
        assert {name: grown[name] for name in expected} == expected
        # Three steps of 2 ms between tokens; prefills of 33 tokens and of 1 at 10 us each.
        assert grown["vllm:inter_token_latency_seconds_sum"] == pytest.approx(0.006)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert after[f"vllm:{name}"] == 0

    def test_every_metric_has_the_labels_of_vllm(self, server: EngineProcess) -> None:
        for family in text_string_to_metric_families(server.get("/metrics")[1]):
            if family.name.startswith("vllm:"):
                for sample in family.samples:
                    assert sample.labels["model_name"] == MODEL
                    assert sample.labels["engine"] == "0"


class TestKvEvents:
    def test_a_subscriber_that_replays_what_it_missed_knows_every_block(
        self, server: EngineProcess
    ) -> None:
        """Read as vLLM's example subscriber does, fields by position."""
        evicting = [list(range(at, at + 1600)) for at in range(30_000, 34_800, 1600)]

        async def use(session: aiohttp.ClientSession) -> None:
            for prompt in evicting:
                await post(session, server, prompt=prompt, max_tokens=1)

        with zmq.Context() as context, context.socket(zmq.SUB) as events:
            events.connect(f"tcp://127.0.0.1:{server.ports['kv_events_port']}")
            events.subscribe(b"kv")
            fresh = itertools.count(40_000, BLOCK)
            while not events.poll(20):  # until the subscription has reached the engine
                ask(server, prompt=list(range(at := next(fresh), at + BLOCK)), max_tokens=1)
            topic, number, payload = events.recv_multipart()
            client(use)
            assert topic == b"kv"
            seen = {int.from_bytes(number, "big"): payload}
            # Everything from the first batch on, the one just seen among it.
            batches = replay(context, server, 0)
            assert sorted(batches) == list(range(len(batches)))
            assert seen.items() <= batches.items()
            last = max(batches)
            assert replay(context, server, last) == {last: batches[last]}
        cache = Follower()
        for number in sorted(batches):
            cache.follow(batches[number])
        capacity = KV_TOKENS // BLOCK
        assert len(cache.blocks) == capacity
        assert cache.holds(evicting[-1])
        assert not cache.holds(evicting[0])

    def test_a_reset_cache_is_said_to_be_empty(self, server: EngineProcess) -> None:
        prompt = list(range(50_000, 50_064))

        async def use(session: aiohttp.ClientSession) -> Any:
            await post(session, server, prompt=prompt)
            async with session.post(server.url + "/reset_prefix_cache") as answer:
                assert answer.status == 200
            return await post(session, server, prompt=prompt)

        answer = client(use)[1]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        with zmq.Context() as context:
            batches = replay(context, server, 0)
        cleared, stored = (msgspec.msgpack.decode(batches[n])[1] for n in sorted(batches)[-2:])
        assert cleared == [["AllBlocksCleared"]]
        assert stored[0][0] == "BlockStored"

    def test_the_map_format_names_its_fields(self) -> None:
        options = ("--kv-events-port", 0, "--kv-replay-port", 0, "--kv-events-format", "map")
        with engine("--profile", linear_profile(), *options) as running, zmq.Context() as context:
            ask(running, prompt=list(range(40)), max_tokens=1)
            _, [event], rank = msgspec.msgpack.decode(replay(context, running, 0)[0])
        assert rank == 0
        assert len(event.pop("block_hashes")) == 2
        assert event == {
            "type": "BlockStored",
            "parent_block_hash": None,
            "token_ids": list(range(32)),
            "block_size": 16,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }


class Follower:
    """The blocks of an engine as its events tell them; every chain must be whole."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}

    def follow(self, payload: bytes) -> None:
        time_s, events, rank = msgspec.msgpack.decode(payload)
        assert time_s > 1.7e9
        assert rank == 0
        for name, *fields in events:
            match name:
                case "BlockStored":
                    hashes, parent, token_ids, size, lora, medium = fields
                    assert (size, lora, medium) == (BLOCK, None, "GPU")
                    assert len(token_ids) == BLOCK * len(hashes)
                    assert parent is None or parent in self.blocks
                    for at, block in enumerate(hashes):
                        tokens = tuple(token_ids[at * BLOCK : (at + 1) * BLOCK])
                        assert block not in self.blocks
                        self.blocks[block] = (parent, tokens)
                        parent = block
                case "BlockRemoved":
                    hashes, medium = fields
                    assert medium == "GPU"
                    for block in hashes:
                        del self.blocks[block]
                case "AllBlocksCleared":
                    assert fields == []
                    self.blocks.clear()
                case _:
                    raise AssertionError(name)

    def holds(self, prompt: list[int]) -> bool:
        """Whether all full blocks of a prompt are here, as one chain."""
        by_content = {content: block for block, content in self.blocks.items()}
        parent: int | None = None
        for at in range(0, len(prompt) - BLOCK + 1, BLOCK):
            parent = by_content.get((parent, tuple(prompt[at : at + BLOCK])))
            if parent is None:
                return False
        return True


def replay(context: zmq.Context[Any], server: EngineProcess, start: int) -> dict[int, bytes]:
    """Batches from a sequence number on.

    The empty frame is a REQ socket's; a REQ socket itself would take only the first reply.
    """
    batches = {}
    with context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{server.ports['kv_replay_port']}")
        socket.send_multipart([b"", start.to_bytes(8, "big")])
        while socket.poll(5000):
            empty, number, payload = socket.recv_multipart()
            assert empty == b""
            sequence = int.from_bytes(number, "big", signed=True)
            if sequence < 0:
                assert payload == b""
                return batches
            batches[sequence] = payload
    raise AssertionError("the replay has no end")
