"""A mock engine from start to end: readiness, draining, faults, options that are no options."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
from typer.testing import CliRunner

from hrl_planner.cli import app
from tests.builders import linear_profile
from tests.engines import EngineProcess, engine, post, stream

PROFILE = linear_profile(0.01, decode_ms=10.0)
SLOW_STREAM = {"prompt": "a b c", "max_tokens": 40}  # 0.4 s


def client(use: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession() as session:
            return await asyncio.wait_for(use(session), 20)

    return asyncio.run(main())


async def until_first_token(
    session: aiohttp.ClientSession, running: EngineProcess, **body: Any
) -> aiohttp.ClientResponse:
    """A streamed answer, its first token read and the rest to come."""
    answer = await session.post(running.url + "/v1/completions", json={**body, "stream": True})
    await answer.content.readline()
    return answer


class TestLife:
    def test_it_is_not_ready_until_it_has_started(self) -> None:
        """Fifty simulated seconds at ten times the speed, from the start of the process on."""
        with engine("--profile", PROFILE, "--startup-s", 50, "--speed", 10) as running:
            assert running.get("/health")[0] == 503
            status, answer = client(lambda session: post(session, running, prompt="a"))
            assert status == 503
            assert "starting" in answer["error"]["message"]
            while running.get("/health")[0] == 503:
                pass
            assert client(lambda session: post(session, running, prompt="a"))[0] == 200

    def test_a_drain_finishes_what_runs_and_takes_nothing_new(self) -> None:
        with engine("--profile", PROFILE) as running:

            async def use(session: aiohttp.ClientSession) -> tuple[int, str]:
                answer = await until_first_token(session, running, **SLOW_STREAM)
                running.terminate()
                while True:
                    async with session.get(running.url + "/health") as health:
                        if health.status == 503:
                            break
                status, _ = await post(session, running, prompt="a")
                return status, await answer.text()

            status, rest = client(use)
            assert status == 503
            assert rest.count('"text"') == 39
            assert rest.endswith("data: [DONE]\n\n")
            assert running.wait() == 0

    def test_a_drain_ends_at_its_timeout(self) -> None:
        with engine("--profile", PROFILE, "--drain-timeout-s", 0.1) as running:

            async def use(session: aiohttp.ClientSession) -> None:
                answer = await until_first_token(session, running, prompt="a", max_tokens=10_000)
                running.terminate()
                with pytest.raises(aiohttp.ClientError):
                    await answer.read()

            client(use)
            assert running.wait() == 0
            assert "1 requests are cut off" in running.errors()

    def test_a_drain_waits_until_kept_kv_caches_are_fetched(self) -> None:
        with engine("--profile", PROFILE, "--role", "prefill") as running:

            async def use(session: aiohttp.ClientSession) -> None:
                handed = {"do_remote_decode": True}
                body = {"prompt": "a b", "max_tokens": 1, "kv_transfer_params": handed}
                params = (await post(session, running, **body))[1]["kv_transfer_params"]
                running.terminate()
                while True:
                    async with session.get(running.url + "/health") as health:
                        if health.status == 503:
                            break
                assert await claim(params) is True
                assert await claim(params) is False  # once

            async def claim(params: Any) -> Any:
                where = params["remote_host"], params["remote_port"]
                reader, writer = await asyncio.open_connection(*where)
                wanted = [params["remote_engine_id"], params["remote_request_id"]]
                writer.write(json.dumps(wanted).encode() + b"\n")
                answer = json.loads(await reader.readline())
                writer.close()
                return answer

            client(use)
            assert running.wait() == 0

    def test_a_second_signal_ends_it_at_once(self) -> None:
        with engine("--profile", PROFILE) as running:

            async def use(session: aiohttp.ClientSession) -> None:
                answer = await until_first_token(session, running, prompt="a", max_tokens=10_000)
                running.terminate()
                while (await (health := await session.get(running.url + "/health")).read()) == b"":
                    pass
                assert health.status == 503
                running.terminate()
                with pytest.raises(aiohttp.ClientError):
                    await answer.read()

            client(use)
            assert running.wait() == 128 + signal.SIGTERM


class TestFaults:
    def test_faults_come_and_go_at_run_time(self) -> None:
        with engine("--profile", PROFILE, "--allow-faults", "--fault", "error:1") as running:

            async def fault(session: aiohttp.ClientSession, **faults: Any) -> int:
                async with session.post(running.url + "/fault", json=faults) as answer:
                    if answer.status == 200:
                        assert await answer.json() == faults
                    return answer.status

            async def seconds(session: aiohttp.ClientSession) -> float:
                loop = asyncio.get_running_loop()
                began_s = loop.time()
                assert (await post(session, running, prompt="a", max_tokens=11))[0] == 200
                return loop.time() - began_s

            async def use(session: aiohttp.ClientSession) -> None:
                assert (await post(session, running, prompt="a"))[0] == 500
                assert await fault(session, error=2.0) == 400
                assert await fault(session, typo=True) == 400
                assert await fault(session) == 200
                assert await seconds(session) >= 0.098
                assert await fault(session, slow=3.0) == 200
                assert await seconds(session) >= 0.298
                assert await fault(session, hang=True) == 200
                answer = asyncio.ensure_future(post(session, running, prompt="a", max_tokens=1))
                done, _ = await asyncio.wait([answer], timeout=0.1)
                assert not done
                assert await fault(session) == 200
                assert (await answer)[0] == 200

            client(use)

    def test_it_hangs_from_the_start(self) -> None:
        with engine("--profile", PROFILE, "--fault", "hang") as running:
            assert running.get("/health")[0] == 200

            async def use(session: aiohttp.ClientSession) -> None:
                """Headers come at once; tokens never."""
                body = {"prompt": "a", "stream": True}
                async with session.post(running.url + "/v1/completions", json=body) as answer:
                    assert answer.status == 200
                    assert answer.content_type == "text/event-stream"
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(answer.content.readline(), 0.1)

            client(use)

    def test_it_dies_in_mid_stream(self) -> None:
        with engine("--profile", PROFILE, "--fault", "die:after=5") as running:

            async def use(session: aiohttp.ClientSession) -> bytes:
                answer = await until_first_token(session, running, **SLOW_STREAM)
                rest = b""
                with pytest.raises(aiohttp.ClientError):
                    async for line in answer.content:
                        rest += line
                answer.close()
                return rest

            assert client(use).count(b'"text"') == 4
            assert running.wait() == -signal.SIGKILL


class TestOptions:
    def refusal(self, *options: object) -> str:
        words = ["mock-engine", "--port", "0", *map(str, options)]
        if "--profile" not in words:
            words += ["--profile", PROFILE]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.split())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--profile", "no-such-profile"), "unknown profile 'no-such-profile'"),
            (("--max-num-seqs", 0), "--max-num-seqs 0: at least 1"),
            (("--max-num-batched-tokens", 256), "must exceed --max-num-seqs 256"),
            (("--block-size", 0), "--block-size 0"),
            (("--speed", 0), "--speed 0.0: above 0"),
            (("--latency-scale", -1), "--latency-scale -1.0: above 0"),
            (("--default-osl", 0), "--default-osl 0: at least 1 token"),
            (("--max-model-len", 1), "--max-model-len 1: at least 2"),
            (("--kv-bandwidth-gb-per-s", 0), "--kv-bandwidth-gb-per-s 0.0: above 0"),
            (("--kv-replay-port", 0), "nothing to replay without --kv-events-port"),
            (("--warmup-slowdown", 0.5), "--warmup-slowdown 0.5: at least 1"),
            (("--startup-s", -1), "--startup-s -1.0: not negative"),
            (("--role", "both"), "'both' is not one of"),
            (("--fault", "sleepy"), "--fault sleepy: expected slow:FACTOR"),
            (("--fault", "error:2"), "error"),
            (("--fault", "die:after=x"), "expected slow:FACTOR"),
            (("--tokenizer", "/no/such/place"), "cannot read the tokenizer"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: tuple[object, ...], message: str) -> None:
        assert message in self.refusal(*options)

    def test_a_worker_without_room_for_a_block(self) -> None:
        profile = linear_profile(kv_capacity_tokens=10)
        assert "leave no KV cache" in self.refusal("--profile", profile)

    def test_a_port_that_is_taken(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUB) as taken:
            port = taken.bind_to_random_port("tcp://127.0.0.1")
            assert f"--port {port}: cannot listen" in self.refusal("--port", port)
            assert f"--kv-events-port {port}" in self.refusal("--kv-events-port", port)


def test_a_models_own_tokenizer_counts_the_prompt(tmp_path: Path) -> None:
    """A vocabulary of letters: one token per character."""
    vocabulary = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz?")}
    model = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }
    model["pre_tokenizer"]["invert"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    with engine("--profile", PROFILE, "--tokenizer", tmp_path, "--model", "letters") as running:
        _, answer = client(lambda session: post(session, running, prompt="hello", max_tokens=1))
    assert answer["model"] == "letters"
    assert answer["usage"]["prompt_tokens"] == 5


def test_many_streams_at_once_are_all_whole() -> None:
    with engine("--profile", linear_profile(0.001, decode_ms=1.0)) as running:

        async def use(session: aiohttp.ClientSession) -> list[list[dict[str, Any]]]:
            bodies = [{"prompt": f"{i} b", "max_tokens": 20 + i % 7} for i in range(64)]
            return await asyncio.gather(*(stream(session, running, **body) for body in bodies))

        for i, events in enumerate(client(use)):
            words = [event["choices"][0]["text"] for event in events]
            assert words == [f" {n:05d}" for n in range(1, 21 + i % 7)]
