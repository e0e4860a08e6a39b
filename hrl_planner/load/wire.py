"""HTTP/1.1 answers, from bytes as they come to bytes of the body. No sockets and no clock here.

A load client reads tens of thousands of small chunks a second on the core it shares with what it
measures, so this is the plain minimum: a head is parsed once per answer, and a chunk of a chunked
body costs one `find` and one slice. Whatever breaks the protocol raises `WireError`; nothing is
repaired, because a server that errs is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_HEAD_BYTES = 64 * 1024
_MAX_SIZE_LINE_BYTES = 256  # a chunk size with its extensions
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")  # extensions mean nothing to us
_NO_BODY = frozenset({204, 304})


class WireError(Exception):
    """The server did not speak HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers of an answer.

    Attributes:
        status: 200 and the like.
        headers: names in lower case; of a repeated header the last value.
        keep_alive: whether the connection can carry another request afterwards.
    """

    status: int
    headers: Mapping[str, str]
    keep_alive: bool


def parse_head(raw: bytes) -> Head:
    """Parse everything before the empty line."""
    line, *rest = raw.decode("latin-1").split("\r\n")
    version, _, tail = line.partition(" ")
    code = tail[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isdigit() and len(code) == 3):
        raise WireError(f"not an HTTP/1.1 status line: {line[:80]!r}")
    headers = {}
    for field in rest:
        name, colon, value = field.partition(":")
        if not colon:
            raise WireError(f"not a header: {field[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
    return Head(int(code), headers, keep_alive)


class ChunkedBody:
    """Decodes `Transfer-Encoding: chunked`.

    Attributes:
        done: whether the last chunk and the trailer have been read.
    """

    __slots__ = ("_held", "_in_chunk", "_in_trailer", "_left", "done")

    def __init__(self) -> None:
        self._held = b""  # the beginning of a line that is not complete
        self._left = 0  # bytes of the current chunk still to come
        self._in_chunk = False  # between a size line and the line end that closes its chunk
        self._in_trailer = False
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`."""
        if self._held:
            data = self._held + data
            self._held = b""
        parts = []
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._hold(data[at:])
                break
            self._line(data[at:line_end])
            at = line_end + 2
        if self.done and at < end:
            raise WireError(f"{end - at} bytes after the end of the answer")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, line: bytes) -> None:
        if self._in_trailer:
            self.done = not line
        elif self._in_chunk:
            if line:
                raise WireError(f"a chunk is longer than its size: {line[:40]!r}")
            self._in_chunk = False
        else:
            size = _chunk_size(line)
            self._left = size
            self._in_chunk = size > 0
            self._in_trailer = size == 0

    def _hold(self, rest: bytes) -> None:
        if self._in_chunk and rest != b"\r":
            raise WireError(f"a chunk is longer than its size: {rest[:40]!r}")
        if len(rest) > (_MAX_HEAD_BYTES if self._in_trailer else _MAX_SIZE_LINE_BYTES):
            raise WireError(f"a line without an end in a chunked body: {rest[:40]!r}")
        self._held = rest


def _chunk_size(line: bytes) -> int:
    # int() alone would also take "+1", "1_0" and "0x1".
    size = _CHUNK_SIZE.fullmatch(line)
    if size is None:
        raise WireError(f"not a chunk size: {line[:40]!r}")
    return int(size[1], 16)


class PlainBody:
    """A body of `Content-Length` bytes, or up to the end of the connection where it is None.

    Attributes:
        done: whether all of it has been read.
    """

    __slots__ = ("_left", "done")

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`."""
        if self._left is None:
            return data
        if len(data) > self._left:
            raise WireError(f"{len(data) - self._left} bytes after the end of the answer")
        self._left -= len(data)
        self.done = self._left == 0
        return data

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return self._left is None


class Answer:
    """One answer: its head, then its body as it comes.

    Attributes:
        head: None until it is complete.
    """

    __slots__ = ("_body", "_held", "head")

    def __init__(self) -> None:
        self.head: Head | None = None
        self._held = b""
        self._body: ChunkedBody | PlainBody | None = None

    @property
    def done(self) -> bool:
        """Whether head and body are complete."""
        return self._body is not None and self._body.done

    @property
    def untouched(self) -> bool:
        """Whether not one byte of it has come."""
        return self.head is None and not self._held

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`."""
        if self._body is not None:
            return self._body.feed(data)
        data = self._held + data
        while True:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                if len(data) > _MAX_HEAD_BYTES:
                    raise WireError(f"a head of over {_MAX_HEAD_BYTES} bytes")
                self._held = data
                return b""
            parsed = parse_head(head)
            if parsed.status >= 200:
                break
            data = rest  # 100 Continue and the like announce the real head
        self.head, self._held = parsed, b""
        self._body = _body_of(parsed)
        return self._body.feed(rest) if rest else b""

    def connection_ended(self) -> bool:
        """Tell that the connection is gone; return whether the answer is complete with that."""
        body = self._body
        return body is not None and (
            body.done or (isinstance(body, PlainBody) and body.ends_with_connection)
        )


def _body_of(head: Head) -> ChunkedBody | PlainBody:
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return ChunkedBody()
    if head.status in _NO_BODY:
        return PlainBody(0)
    length = head.headers.get("content-length")
    if length is None:
        return PlainBody(None)
    if not (length.isascii() and length.isdigit()):
        raise WireError(f"not a content length: {length[:40]!r}")
    return PlainBody(int(length))
