"""When the tokens of one answer came, read off its bytes.

A stream of server-sent events is parsed as JSON only until the first token and in the event that
carries `usage`. In between, tokens are *counted*: the first event with text shows how this server
writes its text field (`"content":"`, `"text": "`), and every further occurrence followed by some
text is one token. That is exact, because inside a JSON string a quote is escaped and the field's
name with its quotes cannot occur. Answers that are not streamed come whole: their tokens have one
time, and their number is in `usage`.

All times are readings of one monotonic clock, which the caller brings.
"""

from __future__ import annotations

import json
import re
from typing import Any

# The text of a chunk: `content` or `reasoning_content` of a chat, `text` of a completion.
_TEXT_FIELD = re.compile(rb'"(?:reasoning_content|content|text)"\s*:\s*"(?!")')
_MAX_ERROR_BYTES = 2000


class StreamMeter:
    """Reads a stream of events.

    Attributes:
        first_s: when the first text came; None so far.
        last_s: when the last text came.
        events: events with text.
        max_gap_s: longest time between two of them.
        ended: whether the server said that the answer is complete.
        error: what the server said in the stream when it failed, else None.
        usage: the `usage` object, {} where the server sends none.
    """

    __slots__ = ("_empty", "_field", "_held", "ended", "error", "events", "first_s", "last_s",
                 "max_gap_s", "usage")  # fmt: skip

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0
        self.events = 0
        self.max_gap_s = 0.0
        self.ended = False
        self.error: str | None = None
        self.usage: dict[str, Any] = {}
        self._held = b""  # the beginning of a line that is not complete
        self._field = b""  # how this server writes its text field
        self._empty = b""

    def feed(self, body: bytes, now_s: float) -> None:
        """Read body bytes that came at `now_s`."""
        if self._held:
            body = self._held + body
            self._held = b""
        if not body.endswith(b"\n"):
            cut = body.rfind(b"\n") + 1
            body, self._held = body[:cut], body[cut:]
        if self._field:
            texts = body.count(self._field) - body.count(self._empty)
        else:
            texts = self._learn(body)
        if texts:
            if self.first_s is None:
                self.first_s = now_s
            elif now_s - self.last_s > self.max_gap_s:
                self.max_gap_s = now_s - self.last_s
            self.last_s = now_s
            self.events += texts
        if b'"prompt_tokens"' in body or b"rror" in body or b"[DONE]" in body:
            self._read(body)

    def finish(self, now_s: float) -> None:
        """The body is complete: nothing is left in a line that had no end."""
        if self._held:
            self.feed(b"\n", now_s)

    @property
    def tokens(self) -> int:
        """Tokens of the answer: as the server counts them, else one per event."""
        return _count(self.usage, "completion_tokens", self.events)

    def _learn(self, body: bytes) -> int:
        found = _TEXT_FIELD.search(body)
        if found is None:
            return 0
        # Without its first letters, `content":"` also finds the end of `reasoning_content":"`.
        self._field = found.group().replace(b'"reasoning_content', b'"content')[1:]
        self._empty = self._field + b'"'
        return body.count(self._field) - body.count(self._empty)

    def _read(self, body: bytes) -> None:
        """Look into the few events that say more than a token."""
        failing = False
        for line in body.split(b"\n"):
            if line.startswith(b"event:"):
                failing = line[6:].strip() == b"error"
                continue
            if failing and line.startswith(b":"):  # Dynamo writes the message as a comment
                self.error = _text(line[1:])
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.ended = True
            elif failing or data.startswith((b'{"error"', b'{"object":"error"')):
                self.error = _text(data)
            elif b'"prompt_tokens"' in data:
                self._read_usage(data)

    def _read_usage(self, data: bytes) -> None:
        try:
            usage = json.loads(data).get("usage")
        except (ValueError, AttributeError):
            return
        if isinstance(usage, dict):
            self.usage = usage


class WholeMeter:
    """Reads an answer that comes as one JSON document; see `StreamMeter` for the attributes."""

    __slots__ = ("_parts", "ended", "error", "first_s", "last_s", "max_gap_s", "usage")

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0
        self.max_gap_s = 0.0
        self.ended = False
        self.error: str | None = None
        self.usage: dict[str, Any] = {}
        self._parts: list[bytes] = []

    def feed(self, body: bytes, now_s: float) -> None:
        """Read body bytes that came at `now_s`."""
        self._parts.append(body)

    def finish(self, now_s: float) -> None:
        """The body is complete."""
        whole = b"".join(self._parts)
        try:
            answer = json.loads(whole)
            self.usage = answer.get("usage") or {}
            self.ended = "choices" in answer
        except (ValueError, AttributeError):
            pass
        if not self.ended:
            self.error = _text(whole)
        else:
            self.first_s = self.last_s = now_s

    @property
    def tokens(self) -> int:
        """Tokens of the answer as the server counts them."""
        return _count(self.usage, "completion_tokens", 1 if self.ended else 0)


class ErrorMeter(WholeMeter):
    """Reads the body of an answer that is not a 200."""

    __slots__ = ()

    def finish(self, now_s: float) -> None:
        """Keep what the server said."""
        self.error = _text(b"".join(self._parts))


Meter = StreamMeter | WholeMeter


def cached_tokens(usage: dict[str, Any]) -> int:
    """Prompt tokens found in a prefix cache; 0 where the server does not say."""
    details = usage.get("prompt_tokens_details")
    return _count(details if isinstance(details, dict) else {}, "cached_tokens", 0)


def _count(usage: dict[str, Any], name: str, default: int) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else default


def _text(raw: bytes) -> str:
    return raw[:_MAX_ERROR_BYTES].decode("utf-8", "replace").strip()
