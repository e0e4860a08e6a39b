"""HTTP/1.1 answers come in pieces that have nothing to do with what they hold."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.load.wire import Answer, ChunkedBody, WireError, parse_head

OK = b"HTTP/1.1 200 OK\r\n"
cuts = st.lists(st.integers(1, 40), max_size=60)


def pieces(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    """`data` cut into pieces of these lengths, what is left in one."""
    out, at = [], 0
    for length in lengths:
        if at >= len(data):
            break
        out.append(data[at : at + length])
        at += length
    return [*out, data[at:]] if at < len(data) else out


def chunked(chunks: Sequence[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    return body + b"0" + extension + b"\r\n" + trailer + b"\r\n"


def read(answer: Answer, data: Sequence[bytes]) -> bytes:
    return b"".join(answer.feed(piece) for piece in data)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=80), max_size=8),
    extension=st.sampled_from([b"", b";a=1", b" ; token"]),
    trailer=st.sampled_from([b"", b"x-a: 1\r\n", b"x-a: 1\r\nx-b: 2\r\n"]),
    lengths=cuts,
)
def test_a_chunked_body_is_what_was_sent_however_it_is_cut(
    chunks: list[bytes], extension: bytes, trailer: bytes, lengths: list[int]
) -> None:
    data = pieces(chunked(chunks, extension, trailer), lengths)
    body = ChunkedBody()
    got = []
    for piece in data:
        assert not body.done
        got.append(body.feed(piece))
    assert body.done
    assert b"".join(got) == b"".join(chunks)


@given(body=st.binary(max_size=200), lengths=cuts, framing=st.sampled_from(["length", "chunks"]))
def test_an_answer_is_complete_with_its_last_byte(
    body: bytes, lengths: list[int], framing: str
) -> None:
    if framing == "length":
        data = OK + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([body] if body else [])
    answer = Answer()
    got = b""
    for piece in pieces(data, lengths):
        assert not answer.done
        got += answer.feed(piece)
    assert answer.done and got == body
    assert answer.head is not None and answer.head.status == 200


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_noise_is_refused_and_nothing_worse(noise: list[bytes]) -> None:
    for start in (b"", OK + b"transfer-encoding: chunked\r\n\r\n"):
        answer = Answer()
        try:
            read(answer, [start, *noise])
        except WireError:
            continue


@pytest.mark.parametrize(
    "size", [b"+5", b"-1", b"0x5", b"5_0", b"g", b"", b"1" * 16, b"f" * 300, b"5\n"]
)
def test_what_is_not_a_hexadecimal_chunk_size_is_refused(size: bytes) -> None:
    with pytest.raises(WireError, match=r"chunk size|without an end"):
        ChunkedBody().feed(size + b"\r\nhello\r\n")


def test_a_chunk_longer_than_its_size_is_refused() -> None:
    with pytest.raises(WireError, match="longer than its size"):
        ChunkedBody().feed(b"2\r\nhello\r\n")


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(WireError, match="after the end"):
        ChunkedBody().feed(b"0\r\n\r\nHTTP/1.1 200 OK")
    with pytest.raises(WireError, match="after the end"):
        Answer().feed(OK + b"content-length: 1\r\n\r\nab")


def test_an_endless_head_is_refused() -> None:
    answer = Answer()
    with pytest.raises(WireError, match="head of over"):
        for _ in range(100):
            answer.feed(b"x" * 1000)


def test_an_interim_answer_is_not_the_answer() -> None:
    answer = Answer()
    answer.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n")
    assert answer.done and answer.head is not None and answer.head.status == 429


def test_without_a_length_the_connection_ends_the_body() -> None:
    answer = Answer()
    assert answer.feed(OK + b"\r\nab") == b"ab"
    assert not answer.done
    assert answer.connection_ended()


@pytest.mark.parametrize("received", [b"", OK, OK + b"content-length: 5\r\n\r\nab"])
def test_an_answer_cut_short_is_not_complete(received: bytes) -> None:
    answer = Answer()
    answer.feed(received)
    assert not answer.connection_ended()


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive", True),
    ],
)
def test_a_connection_is_kept_as_http_says(head: bytes, kept: bool) -> None:
    assert parse_head(head).keep_alive is kept


@pytest.mark.parametrize("line", [b"HTTP/2 200 OK", b"HTTP/1.1 OK", b"SSH-2.0", b""])
def test_what_is_not_http_is_refused(line: bytes) -> None:
    with pytest.raises(WireError, match="status line"):
        parse_head(line)
