"""The endpoint picker's gRPC face: Envoy's external processor and its access log service.

One exchange per request: Envoy buffers the body and asks once; the answer names the destination,
and the stream is closed, so nothing of this request reaches Python again until its line in the
access log, which comes in batches over one long stream. With the config of `envoy` the question
is the body, with the headers the picker needs as attributes. A gateway that sends headers first, or
streams the body (`FULL_DUPLEX_STREAMED`, as the Gateway API Inference Extension asks for), is
understood too; it gets the destination in a header as well.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf.message import DecodeError

from hrl_planner.router.envoy import names
from hrl_planner.router.request import Call, Refusal
from hrl_planner.router.service import Routed, Router

log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_STREAMED_CHUNK_BYTES = 62_000  # Envoy refuses larger chunks of a streamed body
_FULL_DUPLEX = 4  # ProcessingMode.BodySendMode.FULL_DUPLEX_STREAMED

Refused = Callable[[Call, Refusal], None]
Ended = Callable[[Iterable[Any]], None]


class Picker:
    """Serves a router to Envoy.

    Args:
        router: decides.
        refused: told of every refusal.
        ended: told of ended answers, HTTPAccessLogEntry messages.
    """

    def __init__(self, router: Router, refused: Refused, ended: Ended) -> None:
        self._router = router
        self._refused = refused
        self._ended = ended
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> str:
        """Listen; return the address, with the port that a port of 0 became."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ]
        )
        # Raw bytes: the generated services would decode with a slower path and one more call.
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "envoy.service.ext_proc.v3.ExternalProcessor",
                    {"Process": grpc.stream_stream_rpc_method_handler(self._process)},
                ),
                grpc.method_handlers_generic_handler(
                    "envoy.service.accesslog.v3.AccessLogService",
                    {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._access_log)},
                ),
            )
        )
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Take no more questions; those under way have this long."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _process(self, questions: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        asked = _Asked()
        async for raw in questions:
            try:
                asked.take(raw)
            except DecodeError:  # protobuf's strings are UTF-8, a client's headers need not be
                yield self._refusal(asked.call(), _bad_header())
                return
            if asked.goes_on:
                yield _CONTINUE_HEADERS
            if asked.bodiless:
                return
            if asked.whole:
                break
        if not asked.whole:
            return
        routed = await self._decide(asked.call())
        if isinstance(routed, bytes):
            yield routed
            return
        try:
            for answer in _answers(routed, asked):
                yield answer
        except BaseException:
            # The client left as the answer was on its way: no access log will name the flight.
            self._router.ended(routed.flight)
            raise

    async def _decide(self, call: Call) -> Routed | bytes:
        """Return where a request goes, or the answer that it goes nowhere."""
        try:
            return await self._router.route(call)
        except Refusal as refusal:
            return self._refusal(call, refusal)
        except Exception:
            # Without an answer Envoy would tell the client to try again, with the same end.
            log.exception("a decision failed", extra={"request_id": call.request_id})
            return self._refusal(call, _internal())

    def _refusal(self, call: Call, refusal: Refusal) -> bytes:
        self._refused(call, refusal)
        return _immediate(refusal)

    async def _access_log(self, batches: AsyncIterator[bytes], context: Any) -> bytes:
        async for raw in batches:
            try:
                message = als_pb2.StreamAccessLogsMessage.FromString(raw)
            except DecodeError:
                log.exception("a batch of the access log cannot be read")
                continue
            self._ended(message.http_logs.log_entry)
        return b""


class _Asked:
    """What has come of one request.

    Attributes:
        goes_on: the last message was headers that are answered alone, before the body.
        bodiless: there will be no body, so nothing is decided.
        whole: the body is here.
        with_headers: the gateway has sent headers first.
        streamed: it sends the body in parts, and wants it back.
        trailers: it has sent those, too.
    """

    def __init__(self) -> None:
        self.goes_on = self.bodiless = self.whole = False
        self.with_headers = self.streamed = self.trailers = False
        self._found: dict[str, str] = {}
        self._chunks: list[bytes] = []

    def take(self, raw: bytes) -> None:
        """Take one message.

        Raises:
            DecodeError: it is none, or holds text that is no UTF-8.
        """
        question = ext_proc.ProcessingRequest.FromString(raw)
        kind = question.WhichOneof("request")
        self.goes_on = False
        if kind == "request_headers":
            self.with_headers = True
            self._found = _headers(question.request_headers)
            self.streamed = question.protocol_config.request_body_mode == _FULL_DUPLEX
            self.bodiless = question.request_headers.end_of_stream
            self.goes_on = self.bodiless or not self.streamed
            return
        self._found = self._found or _attributes(question)
        if kind == "request_body":
            self._chunks.append(question.request_body.body)
            # Where trailers follow, a body that came in one piece does not end the stream.
            self.whole = question.request_body.end_of_stream or not self.streamed
        elif kind == "request_trailers":
            self.whole = self.trailers = True

    def call(self) -> Call:
        """Return the request."""
        return _call(self._found, self.body)

    @property
    def body(self) -> bytes:
        """The body as far as it has come."""
        return b"".join(self._chunks)


def _bad_header() -> Refusal:
    return Refusal(
        400, "x-slo-class, x-session-id and traceparent must be UTF-8", reason="bad_header"
    )


def _internal() -> Refusal:
    return Refusal(500, "the router failed at this request", reason="internal", kind="server_error")


_CONTINUE_HEADERS = ext_proc.ProcessingResponse(
    request_headers=ext_proc.HeadersResponse()
).SerializeToString()
_CONTINUE_TRAILERS = ext_proc.ProcessingResponse(
    request_trailers=ext_proc.TrailersResponse()
).SerializeToString()


def _headers(message: Any) -> dict[str, str]:
    return {
        item.key: item.raw_value.decode("utf-8", "replace") or item.value
        for item in message.headers.headers
    }


def _attributes(question: Any) -> dict[str, str]:
    fields = question.attributes[names.ATTRIBUTES_OF].fields
    return {name: fields[name].string_value for name in fields}


def _call(found: dict[str, str], body: bytes) -> Call:
    """Make a call of attributes, or of headers where the gateway sends those."""
    keys = names.ATTRIBUTES
    path = found.get(keys["path"]) or found.get(":path", "").partition("?")[0]
    return Call(
        found.get(keys["request_id"]) or found.get("x-request-id", ""),
        path,
        body,
        found.get(keys["slo_class"]) or found.get("x-slo-class", ""),
        found.get(keys["session"]) or found.get("x-session-id", ""),
        found.get(keys["trace"]) or found.get("traceparent", ""),
    )


def _answers(routed: Routed, asked: _Asked) -> list[bytes]:
    answer = ext_proc.ProcessingResponse()
    values = {
        names.DESTINATION: routed.destination,
        names.FALLBACK: routed.fallback,
        names.FLIGHT: str(routed.flight),
        names.WORKER: routed.worker,
    }
    fields = answer.dynamic_metadata.fields[names.METADATA].struct_value.fields
    for name, value in values.items():
        fields[name].string_value = value
    half = answer.request_headers if asked.streamed else answer.request_body
    half.SetInParent()
    common = half.response
    if asked.with_headers:
        written = {name: values[name] for name in (names.DESTINATION, names.FALLBACK)}
        if routed.body is not None:
            written["content-length"] = str(len(routed.body))
        for name, value in written.items():
            common.header_mutation.set_headers.append(_overwrite(name, value))
    if not asked.streamed:
        if routed.body is not None:
            common.body_mutation.body = routed.body
        return [answer.SerializeToString()]
    answers = [answer.SerializeToString(), *_streamed(routed.body or asked.body, asked.trailers)]
    return [*answers, _CONTINUE_TRAILERS] if asked.trailers else answers


def _streamed(body: bytes, trailers: bool) -> list[bytes]:
    answers = []
    for at in range(0, len(body), _STREAMED_CHUNK_BYTES):
        answer = ext_proc.ProcessingResponse()
        part = answer.request_body.response.body_mutation.streamed_response
        part.body = body[at : at + _STREAMED_CHUNK_BYTES]
        part.end_of_stream = at + _STREAMED_CHUNK_BYTES >= len(body) and not trailers
        answers.append(answer.SerializeToString())
    return answers


def _overwrite(name: str, value: str) -> Any:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, raw_value=value.encode()),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _immediate(refusal: Refusal) -> bytes:
    answer = ext_proc.ProcessingResponse()
    immediate = answer.immediate_response
    immediate.status.code = refusal.status
    immediate.body = refusal.body()
    immediate.details = f"{names.REFUSED}{refusal.reason}"
    headers = immediate.headers.set_headers
    headers.append(_overwrite("content-type", "application/json"))
    if refusal.retry_after_s is not None:
        headers.append(_overwrite("retry-after", str(max(1, round(refusal.retry_after_s)))))
    return bytes(answer.SerializeToString())
