"""The picker as gateways of three kinds ask it: ours, headers first, and a streamed body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from hrl_planner.router.envoy import names
from hrl_planner.router.handoff import Handoff
from hrl_planner.router.hasher import PromptHasher
from hrl_planner.router.outcome import Outcomes
from hrl_planner.router.picker import Picker
from hrl_planner.router.service import Router
from tests.routers import Bench, aggregated_spec

BODY = json.dumps({"prompt": list(range(300)), "max_tokens": 10, "stream": True}).encode()


class Gateway:
    """A client of the picker's two services."""

    def __init__(self, channel: grpc.aio.Channel, bench: Bench, router: Router) -> None:
        self._process = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
        )
        self._log = channel.stream_unary(
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
        )
        self.bench, self.router = bench, router

    async def ask(self, *questions: Any) -> list[Any]:
        """Send questions on one stream; return all answers."""
        call = self._process()
        answers = []
        for question in questions:
            await call.write(question.SerializeToString())
        await call.done_writing()
        async for raw in call:
            answers.append(ext_proc.ProcessingResponse.FromString(raw))
        return answers

    async def tell(self, *entries: Any) -> None:
        """Send access log entries."""
        message = als_pb2.StreamAccessLogsMessage()
        message.http_logs.log_entry.extend(entries)
        call = self._log()
        await call.write(message.SerializeToString())
        await call.done_writing()
        await call


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    bench = Bench(aggregated_spec())
    hasher = PromptHasher(bench.config.tokenizer, bench.spec.kv_block_tokens)
    handoff = Handoff(bench.config.handoff)
    router = Router(bench.config, bench.desk, bench.classes, hasher, handoff, bench.metrics)
    outcomes = Outcomes(router, bench.metrics, log_requests=True)
    picker = Picker(router, outcomes.refused, outcomes.ended)
    address = await picker.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(address) as channel:
        yield Gateway(channel, bench, router)
    await picker.stop(0.0)


def run(scenario: Callable[[Gateway], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with gateway() as found:
            await scenario(found)

    asyncio.run(inside())


def body(raw: bytes = BODY, *, end: bool = True, **attributes: str) -> Any:
    question = ext_proc.ProcessingRequest()
    question.request_body.body = raw
    question.request_body.end_of_stream = end
    fields = question.attributes[names.ATTRIBUTES_OF].fields
    for name, value in {"path": "/v1/completions", "request_id": "r1", **attributes}.items():
        fields[names.ATTRIBUTES[name]].string_value = value
    return question


def headers(mode: int, **more: str) -> Any:
    question = ext_proc.ProcessingRequest()
    found = {":path": "/v1/completions?x=1", "x-request-id": "r1", **more}
    for key, value in found.items():
        question.request_headers.headers.headers.append(
            base_pb2.HeaderValue(key=key, raw_value=value.encode())
        )
    question.protocol_config.request_body_mode = mode
    return question


def chosen(answer: Any) -> dict[str, str]:
    fields = answer.dynamic_metadata.fields[names.METADATA].struct_value.fields
    return {name: fields[name].string_value for name in fields}


def mutated(half: Any) -> dict[str, str]:
    return {
        option.header.key: option.header.raw_value.decode()
        for option in half.response.header_mutation.set_headers
    }


def test_our_envoy_asks_once_and_is_told_in_metadata():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body(slo_class="tight"))
        assert answer.WhichOneof("response") == "request_body"
        told = chosen(answer)
        assert told[names.DESTINATION].startswith("10.0.0.") and told[names.WORKER] == "fast-0"
        assert told[names.FALLBACK] != told[names.DESTINATION]
        assert not answer.request_body.response.HasField("body_mutation")

    run(scenario)


def test_a_gateway_that_sends_headers_first_is_told_in_a_header_too():
    async def scenario(found: Gateway) -> None:
        question = headers(2, **{"x-slo-class": "tight"})  # BUFFERED
        first, second = await found.ask(question, body_only(BODY))
        assert first.WhichOneof("response") == "request_headers"
        assert mutated(second.request_body)[names.DESTINATION] == chosen(second)[names.DESTINATION]
        assert chosen(second)[names.WORKER] == "fast-0"

    run(scenario)


def test_a_streamed_body_comes_back_whole_behind_the_headers():
    async def scenario(found: Gateway) -> None:
        question = headers(4, **{"x-slo-class": "loose"})  # FULL_DUPLEX_STREAMED
        large = json.dumps({"prompt": list(range(30_000)), "max_tokens": 5}).encode()
        parts = [large[:70_000], large[70_000:]]
        answers = await found.ask(
            question, body_only(parts[0], end=False), body_only(parts[1], end=True)
        )
        assert answers[0].WhichOneof("response") == "request_headers"
        assert names.DESTINATION in mutated(answers[0].request_headers)
        streamed = [a.request_body.response.body_mutation.streamed_response for a in answers[1:]]
        assert b"".join(part.body for part in streamed) == large
        assert [part.end_of_stream for part in streamed][-1] is True
        assert all(len(part.body) <= 64 * 1024 for part in streamed)

    run(scenario)


def body_only(raw: bytes, *, end: bool = True) -> Any:
    question = ext_proc.ProcessingRequest()
    question.request_body.body = raw
    question.request_body.end_of_stream = end
    return question


def test_a_request_without_a_body_is_let_pass():
    async def scenario(found: Gateway) -> None:
        question = headers(2)
        question.request_headers.end_of_stream = True
        (answer,) = await found.ask(question)
        assert answer.WhichOneof("response") == "request_headers"

    run(scenario)


def test_a_refusal_is_an_immediate_response():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body(b"nonsense"))
        immediate = answer.immediate_response
        assert immediate.status.code == 400
        assert json.loads(immediate.body)["error"]["code"] == "bad_body"
        assert immediate.details == f"{names.REFUSED}bad_body"

    run(scenario)


def entry(flight: str, status: int = 200, **more: Any) -> Any:
    """Return an access log entry as Envoy writes it."""
    line = accesslog_pb2.HTTPAccessLogEntry()
    fields = line.common_properties.metadata.filter_metadata[names.METADATA].fields
    fields[names.FLIGHT].string_value = flight
    line.common_properties.custom_tags[names.FIRST_BYTE_US] = str(more.get("first_us", 100_000))
    line.common_properties.custom_tags[names.LAST_BYTE_US] = str(more.get("last_us", 150_000))
    line.common_properties.upstream_request_attempt_count = more.get("attempts", 1)
    line.common_properties.response_flags.upstream_connection_termination = more.get("cut", False)
    line.common_properties.response_flags.downstream_connection_termination = more.get(
        "left", False
    )
    line.response.response_code.value = status
    line.response.response_body_bytes = more.get("bytes", 2200)
    return line


@pytest.mark.parametrize(
    ("more", "outcome", "accepting"),
    [
        ({}, "attained", 1),
        ({"first_us": 300_000, "last_us": 400_000}, "late_ttft", 1),
        ({"last_us": 900_000}, "late_itl", 1),
        ({"cut": True}, "failed", 0),
        ({"status": 500}, "failed", 0),
        ({"status": 400}, "refused", 1),
        ({"left": True, "status": 0}, "cancelled", 1),
        ({"attempts": 2}, "attained", 0),  # the first worker failed, the second answered
    ],
)
def test_the_access_log_ends_a_flight(more: dict[str, Any], outcome: str, accepting: int):
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body(slo_class="tight"))
        told = chosen(answer)
        assert found.bench.load(told[names.WORKER])["active"] == 1
        await found.tell(entry(told[names.FLIGHT], **more))
        load = found.bench.load(told[names.WORKER])
        assert (load["active"], load["kv_blocks"], load["accepting"]) == (0, 0, accepting)
        assert found.router.under_way == 0
        page = found.bench.metrics.page().decode()
        assert f'hrl_router_slo_total{{class="tight",outcome="{outcome}"}} 1.0' in page

    run(scenario)


def test_an_end_told_twice_or_of_an_unknown_flight_does_no_harm():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body())
        flight = chosen(answer)[names.FLIGHT]
        await found.tell(entry(flight), entry(flight), entry("999999"), entry(""))
        assert found.router.under_way == 0

    run(scenario)
