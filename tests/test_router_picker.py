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
        await self.tell_raw(batch(*entries))

    async def tell_raw(self, *batches: bytes) -> None:
        """Send batches of the access log as they are."""
        call = self._log()
        for raw in batches:
            await call.write(raw)
        await call.done_writing()
        await call


def batch(*entries: Any) -> bytes:
    message = als_pb2.StreamAccessLogsMessage()
    message.http_logs.log_entry.extend(entries)
    return bytes(message.SerializeToString())


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    bench = Bench(aggregated_spec())
    hasher = PromptHasher(bench.config.tokenizer, bench.spec.kv_block_tokens)
    handoff = Handoff(bench.config.handoff)
    router = Router(bench.config, bench.desk, bench.classes, hasher, handoff, bench.metrics)
    outcomes = Outcomes(router, bench.metrics, log_requests=True)
    picker = Picker(router, outcomes.refused, outcomes.ended)
    address = await picker.start("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Gateway(channel, bench, router)
    finally:
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


def trailers() -> Any:
    question = ext_proc.ProcessingRequest()
    question.request_trailers.SetInParent()
    return question


def test_a_body_is_whole_that_trailers_follow_which_envoy_keeps_to_itself():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body(end=False, slo_class="tight"))
        assert chosen(answer)[names.WORKER] == "fast-0"
        _, answer = await found.ask(headers(2), body_only(BODY, end=False))
        assert names.DESTINATION in chosen(answer)

    run(scenario)


def test_trailers_end_a_streamed_body_and_go_on_behind_it():
    async def scenario(found: Gateway) -> None:
        parts = [body_only(BODY[:50], end=False), body_only(BODY[50:], end=False)]
        first, second, third = await found.ask(headers(4), *parts, trailers())
        assert names.DESTINATION in mutated(first.request_headers)
        streamed = second.request_body.response.body_mutation.streamed_response
        assert (streamed.body, streamed.end_of_stream) == (BODY, False)
        assert third.WhichOneof("response") == "request_trailers"

    run(scenario)


def test_trailers_without_a_body_are_the_clients_fault():
    async def scenario(found: Gateway) -> None:
        _, answer = await found.ask(headers(2), trailers())
        assert answer.immediate_response.status.code == 400

    run(scenario)


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


@pytest.mark.parametrize("name", ["slo_class", "session", "trace"])
def test_a_header_that_is_no_text_is_the_clients_fault(name: str):
    async def scenario(found: Gateway) -> None:
        raw = body(**{name: "MARK"}).SerializeToString().replace(b"MARK", b"\xff\xff\xff\xff")
        (answer,) = await found.ask(Raw(raw))
        assert answer.immediate_response.status.code == 400
        assert json.loads(answer.immediate_response.body)["error"]["code"] == "bad_header"
        assert refusals(found, "400", "bad_header") == 1

    run(scenario)


class Raw:
    """A message that protobuf would not make."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def SerializeToString(self) -> bytes:
        return self._raw


def refusals(found: Gateway, status: str, reason: str) -> int:
    page = found.bench.metrics.page().decode()
    line = f'hrl_router_refusals_total{{reason="{reason}",status="{status}"}} '
    return int(float(page.partition(line)[2].partition("\n")[0] or 0))


def test_a_fault_of_the_router_is_answered_counted_and_logged_once(caplog: Any):
    async def broken(call: object) -> None:
        raise ZeroDivisionError("a rule divides")

    async def scenario(found: Gateway) -> None:
        found.router.route = broken  # type: ignore[assignment]
        (answer,) = await found.ask(body())
        assert answer.immediate_response.status.code == 500
        assert json.loads(answer.immediate_response.body)["error"]["code"] == "internal"
        assert refusals(found, "500", "internal") == 1

    run(scenario)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.request_id == "r1" and "a rule divides" in caplog.text


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


def test_an_entry_that_cannot_be_booked_costs_no_other():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body())
        await found.tell(entry("no number"), entry(chosen(answer)[names.FLIGHT]))
        assert found.router.under_way == 0

    run(scenario)


def test_a_batch_that_cannot_be_read_costs_no_other():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body())
        await found.tell_raw(b"\xff", batch(entry(chosen(answer)[names.FLIGHT])))
        assert found.router.under_way == 0

    run(scenario)


def test_no_hint_of_a_length_spoils_what_is_known_of_its_class():
    """A negative length made workers look empty, the class's mean negative, and its counts fail."""

    async def scenario(found: Gateway) -> None:
        hint = {"nvext": {"agent_hints": {"osl": -(10**9)}}}
        (answer,) = await found.ask(body(json.dumps({"prompt": "a", **hint}).encode()))
        assert answer.immediate_response.status.code == 400
        assert b"nvext.agent_hints.osl" in answer.immediate_response.body
        assert all(load >= 0 for load in found.bench.fleet.state.load["kv_blocks"])

    run(scenario)


def test_an_answer_that_was_not_streamed_counts_no_more_tokens_than_its_class_lets_expect():
    async def scenario(found: Gateway) -> None:
        for length in ({"stream": True}, {"max_tokens": 2**31}):
            raw = json.dumps({"prompt": "a b c", **length}).encode()
            (answer,) = await found.ask(body(raw, slo_class="loose"))
            await found.tell(entry(chosen(answer)[names.FLIGHT]))
        page = found.bench.metrics.page().decode()
        # 2200 bytes streamed at 220 a token, then at most twice as much.
        assert 'hrl_router_class_answer_tokens_total{class="loose"} 30.0' in page

    run(scenario)


def test_an_end_told_twice_or_of_an_unknown_flight_does_no_harm():
    async def scenario(found: Gateway) -> None:
        (answer,) = await found.ask(body())
        flight = chosen(answer)[names.FLIGHT]
        await found.tell(entry(flight), entry(flight), entry("999999"), entry(""))
        assert found.router.under_way == 0

    run(scenario)
