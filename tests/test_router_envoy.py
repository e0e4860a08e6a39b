"""Envoy as the bootstrap makes it, the real one, before a toy picker and toy workers."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from hrl_planner.router import envoy
from hrl_planner.router.envoy import names
from tests.toy_router import Background, Rig, eventually

MAX_BODY = 1 << 20
TIMES = {
    "headers_timeout_s": 0.5,
    "request_timeout_s": 1.0,
    "decision_timeout_s": 2.0,
    "first_byte_timeout_s": 0.5,
    "max_body_bytes": MAX_BODY,
    "max_connections": 50,
}
POST = b"POST /v1/completions HTTP/1.1\r\nhost: router\r\n"


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


@pytest.fixture(scope="module")
def shared(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("rig"), TIMES)
    background.run(rig.start())
    yield rig
    background.run(rig.stop())


@pytest.fixture
def rig(shared: Rig) -> Rig:
    shared.picker.asked.clear()
    shared.workers.asked.clear()
    shared.workers.go_on.clear()
    return shared


def asks(test: Callable[[Rig], Any]) -> Callable[[Rig, Background], None]:
    """Run an async test in the loop of its rig."""

    def run(rig: Rig, background: Background) -> None:
        background.run(test(rig))

    run.__name__ = test.__name__
    return run


def code_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


@asks
async def test_a_request_goes_where_the_picker_says_after_one_exchange(rig: Rig) -> None:
    answer = await rig.post(
        {"to": "b", "fallback": "a"},
        "/v1/chat/completions?x=1",
        {"x-session-id": "s-1", "x-request-id": "r-1"},
    )
    assert answer.status == 200
    assert answer.json()["name"] == "b"
    assert answer.json()["path"] == "/v1/chat/completions?x=1"
    (asked,) = rig.picker.asked
    assert json.loads(asked.request_body.body)["to"] == rig.workers.addresses["b"]
    attributes = asked.attributes[names.ATTRIBUTES_OF].fields
    told = {name: attributes[key].string_value for name, key in envoy.ATTRIBUTES.items()}
    assert told["request_id"] == "r-1"
    assert told["session"] == "s-1"
    assert told["path"] == "/v1/chat/completions"
    assert told["trace"] == ""


@asks
async def test_a_client_cannot_choose_its_worker(rig: Rig) -> None:
    a, b = rig.workers.addresses["a"], rig.workers.addresses["b"]
    forged = {
        envoy.DESTINATION: b,
        envoy.FALLBACK: b,
        "X-Gateway-Anything": "1",
        "x-envoy-attempt-count": "7",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-original-dst-host": b,
    }
    answer = await rig.post({"to": "a"}, headers=forged)
    assert answer.json()["name"] == "a"
    seen = answer.json()["headers"]
    routing = {k: v for k, v in seen.items() if k.startswith(("x-gateway-", "x-envoy-"))}
    assert routing == {envoy.DESTINATION: a, "x-envoy-attempt-count": "1"}
    # Without a fallback of the picker's there is none.
    answer = await rig.post({"to": "127.0.0.1:1"}, headers=forged)
    assert answer.status == 503
    assert [name for name, _ in rig.workers.asked] == ["a"]


@asks
async def test_trace_headers_pass_untouched(rig: Rig) -> None:
    trace = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "vendor=value",
    }
    answer = await rig.post({"to": "a"}, headers=trace)
    assert trace.items() <= answer.json()["headers"].items()


@asks
async def test_a_sane_request_id_is_kept_and_any_other_replaced(rig: Rig) -> None:
    for given in ("trace:7_a.b-c", "x" * 128):
        answer = await rig.post({"to": "a"}, headers={"x-request-id": given})
        assert answer.headers["x-request-id"] == given
        assert answer.json()["headers"]["x-request-id"] == given
    for given in ("two words", "x" * 129, '{"json": 1}', "über"):
        answer = await rig.post({"to": "a"}, headers={"x-request-id": given})
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 36
    assert len((await rig.post({"to": "a"})).headers["x-request-id"]) == 36


@asks
async def test_the_picker_may_put_another_body_in_place(rig: Rig) -> None:
    for body in ({"short": 1}, {"long": "x" * 200_000}):
        answer = await rig.post({"to": "a", "rewrite": body, "padding": "y" * 1000})
        assert answer.json()["body"] == body
        assert int(answer.json()["headers"]["content-length"]) == len(json.dumps(body))


@asks
async def test_the_picker_may_make_a_body_longer_than_a_client_may(rig: Rig) -> None:
    answer = await rig.post({"to": "a", "grow": MAX_BODY + 100_000, "x": "y" * (MAX_BODY - 100)})
    assert answer.status == 200
    assert len(answer.json()["body"]["grown"]) == MAX_BODY + 100_000


@asks
async def test_refusals_of_the_picker_pass_as_they_are(rig: Rig) -> None:
    answer = await rig.post({"refuse": 429})
    assert answer.status == 429
    assert answer.json() == {"error": {"code": "from the picker"}}
    assert answer.headers["x-request-id"]
    assert rig.workers.asked == []


@asks
async def test_unknown_paths_and_methods_get_an_openai_error(rig: Rig) -> None:
    for answer in (
        await rig.get("/v1/completions"),
        await rig.get("/metrics"),
        await rig.post({"to": "a"}, "/v1/models"),
        await rig.post({"to": "a"}, "/v1/embeddings"),
    ):
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/json"
        assert code_of(answer.body) == "not_found"
    assert rig.picker.asked == []


@asks
async def test_models_and_health_come_from_the_picker_process_unasked(rig: Rig) -> None:
    for path in ("/v1/models", "/health"):
        answer = await rig.get(path)
        assert answer.status == 200
        assert answer.json()["path"] == path
    assert rig.picker.asked == []


@asks
async def test_an_empty_body_is_the_clients_fault(rig: Rig) -> None:
    answer = await rig.post(b"")
    assert answer.status == 400
    assert code_of(answer.body) == "empty_body"
    chunked = POST + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n"
    assert (await rig.raw(chunked)).startswith(b"HTTP/1.1 400 ")
    assert rig.workers.asked == []


@asks
async def test_a_body_over_the_limit_gets_413(rig: Rig) -> None:
    under = await rig.post({"to": "a", "x": "y" * (MAX_BODY - 100)})
    assert under.status == 200
    over = await rig.post({"to": "a", "x": "y" * 2 * MAX_BODY})
    assert over.status == 413
    assert code_of(over.body) == "request_too_large"
    assert len(rig.picker.asked) == 1


@asks
async def test_malformed_requests_get_an_openai_error(rig: Rig) -> None:
    for request, status, code in (
        (b"\x16\x03\x01 no http\r\n\r\n", b"400", "malformed_request"),
        (POST + b"h: " + b"c" * 40_000 + b"\r\n\r\n", b"431", "headers_too_large"),
        (POST + b"".join(b"h%d: c\r\n" % i for i in range(80)) + b"\r\n", b"431", ""),
    ):
        head, _, body = (await rig.raw(request)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert code_of(body) == code or not code


@pytest.mark.parametrize("worker", ["dead", "die", "busy", "silent"])
def test_a_worker_that_gave_no_byte_is_replaced_by_the_fallback(
    rig: Rig, background: Background, worker: str
) -> None:
    long = {"x": "y" * 500_000}
    wish = {"to": "127.0.0.1:1" if worker == "dead" else "a", "worker": {"a": worker}}
    answer = background.run(rig.post({**wish, **long, "fallback": "b"}))
    assert answer.status == 200
    assert answer.json()["name"] == "b"
    assert answer.json()["body"]["x"] == long["x"]
    assert len(rig.picker.asked) == 1


@asks
async def test_where_the_fallback_fails_too_the_client_hears_why(rig: Rig) -> None:
    both = {"to": "a", "fallback": "b"}
    answer = await rig.post({"to": "127.0.0.1:1", "fallback": "127.0.0.1:1"})
    assert (answer.status, code_of(answer.body)) == (503, "unavailable")
    answer = await rig.post({**both, "worker": "silent"})
    assert (answer.status, code_of(answer.body)) == (504, "timeout")
    answer = await rig.post({**both, "worker": "busy"})
    assert (answer.status, answer.json()) == (503, {"error": {"code": "from the engine"}})


@asks
async def test_nothing_is_tried_again_once_the_answer_has_begun(rig: Rig) -> None:
    rig.workers.go_on.set()
    for worker in ("die_midway", "silent_after_headers"):
        with pytest.raises(aiohttp.ClientPayloadError):
            await rig.post({"to": "a", "fallback": "b", "worker": {"a": worker}})
    assert rig.workers.asked == [("a", "die_midway"), ("a", "silent_after_headers")]


@asks
async def test_tokens_pass_as_they_come(rig: Rig) -> None:
    body = rig.body({"to": "a", "worker": "stream"})
    async with rig.session.post("/v1/completions", data=body) as response:
        assert await response.content.readuntil(b"\n\n") == b"data: a first\n\n"
        rig.workers.go_on.set()
        assert await response.read() == b"data: [DONE]\n\n"


@asks
async def test_a_slow_decision_is_no_slow_client(rig: Rig) -> None:
    """The limit on a request's arrival is over when it has arrived."""
    assert (await rig.post({"to": "a", "delay_s": 1.5})).status == 200


@asks
async def test_a_decision_that_takes_too_long_ends(rig: Rig) -> None:
    answer = await rig.post({"to": "a", "delay_s": 30})
    assert (answer.status, code_of(answer.body)) == (504, "timeout")
    await eventually(lambda: rig.picker.cancelled)


@asks
async def test_slow_clients_are_cut_off(rig: Rig) -> None:
    opening = POST + b"content-length: 100\r\n\r\n"
    trickling_headers, trickling_body, stalled_body = await asyncio.gather(
        rig.raw(POST, *[b"a: b\r\n"] * 100, pause_s=0.1),
        rig.raw(opening, *[b"x"] * 90, pause_s=0.1),
        rig.raw(opening),
    )
    for answer in (trickling_headers, trickling_body):
        # One that goes on writing may be reset before it reads the answer.
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
    assert stalled_body.startswith(b"HTTP/1.1 408 ")
    assert rig.picker.asked == []


@asks
async def test_a_client_that_leaves_ends_its_decision(rig: Rig) -> None:
    before = rig.picker.cancelled
    asking = asyncio.create_task(rig.post({"to": "a", "delay_s": 30}))
    await eventually(lambda: rig.picker.asked)
    asking.cancel()
    await eventually(lambda: rig.picker.cancelled == before + 1)


@asks
async def test_the_picker_hears_how_each_answer_ended(rig: Rig) -> None:
    rig.workers.go_on.set()
    ended = rig.picker.ended
    await rig.post({"to": "a", "worker": "stream"}, headers={"x-request-id": "whole"})
    await rig.post({"to": "a", "fallback": "b", "worker": {"a": "die"}}, headers=_id("moved"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await rig.post({"to": "a", "worker": "die_midway"}, headers={"x-request-id": "broken"})
    await eventually(lambda: {"whole", "moved", "broken"} <= ended.keys())

    tags = ended["whole"].common_properties.custom_tags
    assert tags["destination"] == tags["upstream"] == rig.workers.addresses["a"]
    assert 0 < int(tags[names.FIRST_BYTE_US]) <= int(tags[names.LAST_BYTE_US])
    assert ended["whole"].response.response_body_bytes > 0
    assert ended["moved"].common_properties.upstream_request_attempt_count == 2
    tags = ended["moved"].common_properties.custom_tags
    assert tags["upstream"] == rig.workers.addresses["b"]
    assert "after_response_started" in ended["broken"].response.response_code_details


@asks
async def test_connections_over_the_limit_are_closed_at_once(rig: Rig) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(60)]
    try:
        closed = await asyncio.gather(
            *(asyncio.wait_for(reader.read(1), 1) for reader, _ in connections),
            return_exceptions=True,
        )
        assert sum(not isinstance(each, TimeoutError) for each in closed) >= 10
    finally:
        for _, writer in connections:
            writer.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl for HTTP/2 without TLS")
def test_clients_may_speak_http2(rig: Rig) -> None:
    url = f"http://127.0.0.1:{rig.port}/v1/completions"
    body = rig.body({"to": "a"}).decode()
    flags = (
        "-s",
        "-o",
        "/dev/null",
        "--http2-prior-knowledge",
        "-w",
        "%{http_version} %{http_code}",
    )
    said = subprocess.run(["curl", *flags, "-d", body, url], capture_output=True, check=True)
    assert said.stdout == b"2 200"


@asks
async def test_envoys_own_metrics_are_on_loopback(rig: Rig) -> None:
    admin = f"http://127.0.0.1:{rig.config.admin_port}/stats/prometheus"
    async with aiohttp.ClientSession() as session, session.get(admin) as response:
        assert "envoy_http_downstream_rq_total" in await response.text()
    assert (
        envoy.bootstrap(rig.config)["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    )


def _id(request_id: str) -> dict[str, str]:
    return {"x-request-id": request_id}
