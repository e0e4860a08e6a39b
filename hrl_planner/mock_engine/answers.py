"""The bytes of an answer: SSE chunks written as tokens come, or one JSON object at the end.

Token n of every answer is the word ` 0000n`, so a reader can see that none is missing, and every
chunk of an answer has the same length. All of a chunk but that word is made once per request; a
token costs one formatting and at most one write on the connection's transport, past the HTTP
library, whose per-chunk work would cost more than the engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from hrl_planner.mock_engine.engine import StepReport

_PLACE = " @@@@@"  # as long as a word
_LONGEST_HELD_S = 0.005
_WORDS = 100_000  # where counting starts again: a chunk's length is part of its bytes


class Answer:
    """What is said about one request, whatever the form.

    Args:
        chat: whether it came through /v1/chat/completions.
        request_id: as in the header.
        model: the served name.
        isl: tokens of the prompt.
        osl: tokens of the answer.
    """

    def __init__(self, *, chat: bool, request_id: str, model: str, isl: int, osl: int) -> None:
        """Name the answer and give it its time."""
        self.chat = chat
        self.isl = isl
        self.osl = osl
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def complete(self, cached_tokens: int, **more: Any) -> bytes:
        """Return the whole answer as JSON."""
        text = "".join(f" {n % _WORDS:05d}" for n in range(1, self.osl + 1))
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
        body = {**self._head, "choices": [choice], "usage": self._usage(cached_tokens), **more}
        return json.dumps(body).encode()

    def chunk(self, first: bool, last: bool) -> tuple[bytes, bytes]:
        """Return what stands before and behind the word in the event of a token."""
        said: dict[str, Any] = {"text": _PLACE}
        if self.chat:
            said = {"delta": {"role": "assistant"} if first else {}}
            said["delta"]["content"] = _PLACE
        choice = {
            "index": 0,
            **said,
            "logprobs": None,
            "finish_reason": "length" if last else None,
        }
        event = self._event([choice])
        # The last place is the word's, whatever the client has named its request.
        before, _, behind = event.rpartition(_PLACE.encode())
        return before, behind

    def usage_event(self, cached_tokens: int) -> bytes:
        """Return the event that tells the usage."""
        return self._event([], usage=self._usage(cached_tokens))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self._head, "object": kind, "choices": choices, **more}
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    def _usage(self, cached_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.isl,
            "completion_tokens": self.osl,
            "total_tokens": self.isl + self.osl,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }


class Outbox:
    """Streams with tokens that are not written yet.

    An engine that is behind makes up for several steps at once. Their tokens are late already, and
    each write costs more than all that led to it: so they leave together, one write per stream.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Hold nothing."""
        self._clock = clock
        self._holding: list[TokenStream] = []
        self._since_s = 0.0

    def hold(self, stream: TokenStream) -> None:
        """A stream has its first token that is not written."""
        if not self._holding:
            self._since_s = self._clock()
        self._holding.append(stream)

    def on_step(self, report: StepReport) -> None:
        """Write what has been held for long, however far behind the engine is."""
        if self._holding and self._clock() - self._since_s > _LONGEST_HELD_S:
            self.flush()

    def flush(self) -> None:
        """Write everything."""
        holding, self._holding = self._holding, []
        for stream in holding:
            stream.flush()


class TokenStream:
    """Writes one answer to a connection, token by token.

    Args:
        answer: what to write.
        transport: the connection, response headers sent.
        chunked: whether the body is in HTTP/1.1 chunks.
        outbox: tells when to write.

    Attributes:
        ended: done when the last token is written.
    """

    def __init__(
        self, answer: Answer, transport: asyncio.WriteTransport, chunked: bool, outbox: Outbox
    ) -> None:
        """Make the bytes that all chunks share."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._transport = transport
        self._chunked = chunked
        self._outbox = outbox
        self._held = b""
        before, behind = answer.chunk(first=False, last=False)
        if chunked:
            before = b"%x\r\n" % (len(before) + len(_PLACE) + len(behind)) + before
            behind += b"\r\n"
        self._before, self._behind = before, behind

    def token(self, n: int) -> None:
        """Write token n, now or with the next ones."""
        first, last = n == 1, n == self._answer.osl
        if not first and not last:
            # Called for every token of every stream: what must be cheap.
            self._hold(b"%b %05d%b" % (self._before, n % _WORDS, self._behind))
            return
        before, behind = self._answer.chunk(first, last)
        event = b"%b %05d%b" % (before, n % _WORDS, behind)
        if self._chunked:
            event = b"%x\r\n%b\r\n" % (len(event), event)
        self._hold(event)
        if last and not self.ended.done():
            self.flush()
            self.ended.set_result(None)

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, b""
        if not held:
            return
        try:
            self._transport.write(held)
        except RuntimeError:
            pass  # closed a moment ago; the handler is about to be cancelled

    def _hold(self, event: bytes) -> None:
        if self._held:
            self._held += event
        else:
            self._held = event
            self._outbox.hold(self)
