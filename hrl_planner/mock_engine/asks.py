"""What a request body asks of the engine.

Parsing ends here: behind this module there are only numbers. Whatever is wrong with a body is an
`ApiError`, which the server answers in OpenAI's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hrl_planner.mock_engine.identity import Identity


class ApiError(Exception):
    """An answer that is an error, in OpenAI's format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        """Say with which HTTP status, and why."""
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON, as vLLM writes it."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": None,
                "code": self.status,
            }
        }


@dataclass(frozen=True)
class RemotePrefill:
    """Where the KV cache of a prompt is, in vLLM's hand-off."""

    engine_id: str
    request_id: str
    host: str
    port: int


@dataclass(frozen=True)
class Room:
    """Where prefill and decode meet, in SGLang's hand-off."""

    host: str
    port: int
    room: int


@dataclass(frozen=True)
class Ask:
    """A valid request.

    Attributes:
        osl: tokens of the answer.
        hands_over: the prompt is computed for another worker, as `kv_transfer_params` or room say.
        remote: pull the KV cache from there instead of computing it.
        room: meet the other worker there.
    """

    osl: int
    stream: bool
    include_usage: bool
    hands_over: bool = False
    remote: RemotePrefill | None = None
    room: Room | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _KvTransferParams(msgspec.Struct):
    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None


class _Body(msgspec.Struct):
    """The fields of both endpoints that the engine acts on; others are ignored."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    ignore_eos: bool | None = None
    kv_transfer_params: _KvTransferParams | None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    bootstrap_room: int | None = None


def decode_body(raw: bytes) -> dict[str, Any]:
    """Return a request body's JSON object."""
    try:
        body: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ApiError(400, f"Invalid JSON body: {error}") from error
    return body


def parse(body: Mapping[str, Any], isl: int, identity: Identity) -> Ask:
    """Return what a body with a prompt of `isl` tokens asks of an engine."""
    try:
        fields = msgspec.convert(body, _Body)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error)) from error
    if fields.model is not None and fields.model != identity.model:
        raise ApiError(404, f"The model `{fields.model}` does not exist.", "NotFoundError")
    if fields.n not in (None, 1):
        raise ApiError(400, f"n must be 1, got {fields.n}.")
    params = fields.kv_transfer_params
    room = _room(fields) if identity.role != "aggregated" else None
    hands_over = room is not None and identity.role == "prefill"
    osl = 1 if hands_over else _osl(fields, isl, identity)
    if params is not None and params.do_remote_decode:
        if osl != 1:
            raise ApiError(
                400, f"kv_transfer_params.do_remote_decode needs max_tokens 1, got {osl}."
            )
        hands_over = True
    _check_length(isl, 0 if hands_over else osl, identity.max_model_len)
    return Ask(
        osl=osl,
        # Nobody streams the one token of a prefill.
        stream=bool(fields.stream) and not hands_over,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
        hands_over=hands_over,
        remote=_remote(params),
        room=room,
    )


def _osl(fields: _Body, isl: int, identity: Identity) -> int:
    wanted = fields.max_completion_tokens
    if wanted is None:
        wanted = fields.max_tokens
    if wanted is None:
        return max(1, min(identity.default_osl, identity.max_model_len - isl))
    if wanted < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {wanted}.")
    return wanted


def _check_length(isl: int, osl: int, limit: int) -> None:
    if isl == 0:
        raise ApiError(400, "The prompt is empty.")
    if isl + osl > limit:
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{isl + osl} tokens ({isl} in the prompt, {osl} in the answer).",
        )


def _remote(params: _KvTransferParams | None) -> RemotePrefill | None:
    if params is None or not params.do_remote_prefill:
        return None
    if params.remote_engine_id is None or params.remote_host is None or params.remote_port is None:
        raise ApiError(
            400,
            "kv_transfer_params.do_remote_prefill needs remote_engine_id, remote_host and "
            "remote_port.",
        )
    return RemotePrefill(
        params.remote_engine_id,
        params.remote_request_id or "",
        params.remote_host,
        params.remote_port,
    )


def _room(fields: _Body) -> Room | None:
    if fields.bootstrap_room is None:
        return None
    if fields.bootstrap_host is None or fields.bootstrap_port is None:
        raise ApiError(400, "bootstrap_room needs bootstrap_host and bootstrap_port.")
    return Room(fields.bootstrap_host, fields.bootstrap_port, fields.bootstrap_room)
