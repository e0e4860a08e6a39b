"""The bytes of an answer: SSE chunks written as tokens come, or one JSON object at the end.

Token n of every answer is the word ` 0000n`, so a reader can see that none is missing, and every
chunk of an answer has the same length. All of a chunk but that word is made once per request; a
token costs one formatting and one write on the connection's transport, past the HTTP library,
whose per-chunk work would cost more than the engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

_PLACE = " @@@@@"  # as long as a word
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


class TokenStream:
    """Writes one answer to a connection, token by token.

    Args:
        answer: what to write.
        transport: the connection, response headers sent.
        chunked: whether the body is in HTTP/1.1 chunks.

    Attributes:
        ended: done when the last token is written.
    """

    def __init__(self, answer: Answer, transport: asyncio.WriteTransport, chunked: bool) -> None:
        """Make the bytes that all chunks share."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._transport = transport
        self._chunked = chunked
        before, behind = answer.chunk(first=False, last=False)
        if chunked:
            before = b"%x\r\n" % (len(before) + len(_PLACE) + len(behind)) + before
            behind += b"\r\n"
        self._before, self._behind = before, behind

    def token(self, n: int) -> None:
        """Write token n."""
        first, last = n == 1, n == self._answer.osl
        if not first and not last:
            # Called for every token of every stream: what must be cheap.
            self._write(b"%b %05d%b" % (self._before, n % _WORDS, self._behind))
            return
        before, behind = self._answer.chunk(first, last)
        event = b"%b %05d%b" % (before, n % _WORDS, behind)
        if self._chunked:
            event = b"%x\r\n%b\r\n" % (len(event), event)
        self._write(event)
        if last and not self.ended.done():
            self.ended.set_result(None)

    def _write(self, data: bytes) -> None:
        try:
            self._transport.write(data)
        except RuntimeError:
            pass  # closed a moment ago; the handler is about to be cancelled
