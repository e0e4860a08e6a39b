"""What the router reads of a client's request, and how it says no.

Bodies are OpenAI's, with the extensions of NVIDIA Dynamo for the SLO: `nvext.router.ttft_target`
and `itl_target` in milliseconds, `nvext.agent_hints.priority`. Fields the router has no use for
are left alone: the engine that serves the request judges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
# More tokens than any engine writes; numbers beyond 64 bits have no place in compiled rules.
_MOST_TOKENS = 2**31

T = TypeVar("T")


class Refusal(Exception):
    """A request is not routed; the client is told why in OpenAI's error format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
        answer: bytes | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason  # for metrics and logs
        self.kind = kind
        self.retry_after_s = retry_after_s
        self._answer = answer  # an engine's own words, where it refused

    def body(self) -> bytes:
        """Return the error as JSON."""
        if self._answer is not None:
            return self._answer
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.reason}
        return msgspec.json.encode({"error": error})


def shed(ttft_s: float) -> Refusal:
    """Return the refusal of a request that its class does not let be late."""
    return Refusal(
        429,
        "no pool can serve this request within its target",
        reason="shed",
        kind="rate_limit_error",
        retry_after_s=max(1.0, ttft_s),
    )


def no_worker(what: str) -> Refusal:
    """Return the refusal of a request that has waited enough for any worker of a kind."""
    return Refusal(
        503,
        f"no {what} accepts requests",
        reason="no_worker",
        kind="server_error",
        retry_after_s=5.0,
    )


class _RouterHints(msgspec.Struct):
    ttft_target: float | None = None
    itl_target: float | None = None


class _AgentHints(msgspec.Struct):
    priority: float | None = None
    osl: int | None = None


class _Nvext(msgspec.Struct):
    router: _RouterHints | None = None
    agent_hints: _AgentHints | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    prompt: Any = None
    messages: Any = None
    tools: Any = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    nvext: _Nvext | None = None


_decoder = msgspec.json.Decoder(_Body)
_all_fields = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Call:
    """One client request as it arrived.

    Attributes:
        request_id: Envoy's `x-request-id`.
        path: without query.
        raw: the body.
        slo_class: header `x-slo-class`, empty without.
        session: header `x-session-id`, empty without.
        trace: W3C `traceparent`, empty without; handed on to a prefill worker.
    """

    request_id: str
    path: str
    raw: bytes
    slo_class: str = ""
    session: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the body asks for.

    Attributes:
        prompt: the fields a prompt is made of, as in the body.
        stream: whether tokens are streamed.
        max_tokens: most tokens of the answer, 1 at least; None when the body does not say.
        ttft_s: TTFT target of the body; None without.
        itl_s: ITL target of the body; None without.
        priority: `agent_hints.priority`, 0 without.
    """

    prompt: dict[str, Any]
    stream: bool
    max_tokens: int | None
    ttft_s: float | None
    itl_s: float | None
    priority: float


def read(call: Call, models: tuple[str, ...]) -> Wish:
    """Read a request's body.

    Raises:
        Refusal: 400 for a body that is no valid request, 404 for a model that is not served.
    """
    body = _decoded(call.raw, _decoder)
    if body.model is not None and body.model not in models:
        raise Refusal(
            404, f"the model {body.model!r} does not exist", reason="model_not_found"
        ) from None
    prompt = _prompt_of(call.path, body)
    hints = body.nvext.router if body.nvext else None
    agent = body.nvext.agent_hints if body.nvext else None
    return Wish(
        prompt,
        bool(body.stream),
        _limit(body, agent),
        _target_s("ttft_target", hints.ttft_target if hints else None),
        _target_s("itl_target", hints.itl_target if hints else None),
        (agent.priority if agent else None) or 0.0,
    )


def all_fields(call: Call) -> dict[str, Any]:
    """Return everything a request's body says, for an engine that is asked in the client's place.

    Raises:
        Refusal: 400 for what `read` has passed over and no engine could read either.
    """
    return _decoded(call.raw, _all_fields)


def _decoded(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(raw)
    # A field of the wrong type; text that is no UTF-8; lists in lists in lists.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is no valid request: {error}", reason="bad_body") from None


def _limit(body: _Body, agent: _AgentHints | None) -> int | None:
    """Return the most tokens of the answer, of the first field that says it."""
    said = {
        "max_completion_tokens": body.max_completion_tokens,
        "max_tokens": body.max_tokens,
        "nvext.agent_hints.osl": agent.osl if agent else None,
    }
    for field, limit in said.items():
        if limit is None:
            continue
        if not 1 <= limit <= _MOST_TOKENS:
            raise Refusal(
                400, f"{field} must be from 1 to {_MOST_TOKENS}, got {limit}", reason="bad_body"
            )
        return limit
    return None


def _prompt_of(path: str, body: _Body) -> dict[str, Any]:
    if path == CHAT:
        if not isinstance(body.messages, list) or not body.messages:
            raise Refusal(400, "messages must be a list with at least one", reason="bad_body")
        return {"messages": body.messages, "tools": body.tools}
    if not isinstance(body.prompt, str | list) or not body.prompt:
        raise Refusal(400, "prompt must be a string or a list, and not empty", reason="bad_body")
    return {"prompt": body.prompt}


def _target_s(field: str, milliseconds: float | None) -> float | None:
    if milliseconds is None:
        return None
    seconds = milliseconds * 1e-3
    if not 0.0 < seconds < 1e6:
        raise Refusal(
            400,
            f"nvext.router.{field} must be a positive number of milliseconds, got {milliseconds}",
            reason="bad_body",
        )
    return seconds
