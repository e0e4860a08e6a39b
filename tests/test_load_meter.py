"""Tokens are counted without parsing each event, and exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.load.meter import StreamMeter, WholeMeter, cached_tokens
from tests.test_load_wire import cuts, pieces

# Texts that look like the field whose occurrences are counted.
texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(['"content":"x', 'text":"', "\n\ndata: [DONE]\n\n", "error", "", '"']),
    ),
    max_size=12,
)


def chat(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"role": "assistant", "content": text}}]}


def reasoning(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"reasoning_content": text, "content": None}}]}


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"text": text, "index": 0}], "usage": None}


def event(data: object, separators: tuple[str, str] | None = None) -> bytes:
    return f"data: {json.dumps(data, separators=separators)}\n\n".encode()


@given(
    texts=texts,
    form=st.sampled_from([chat, reasoning, completion]),
    separators=st.sampled_from([None, (",", ":")]),
    lengths=cuts,
)
def test_every_event_with_text_is_one_token_however_the_stream_is_cut(
    texts: list[str],
    form: Callable[[str], dict[str, Any]],
    separators: tuple[str, str] | None,
    lengths: list[int],
) -> None:
    stream = b"".join(event(form(text), separators) for text in texts) + b"data: [DONE]\n\n"
    meter = StreamMeter()
    for at, piece in enumerate(pieces(stream, lengths)):
        meter.feed(piece, float(at))
    meter.finish(99.0)
    assert meter.tokens == sum(text != "" for text in texts)
    assert meter.ended and meter.error is None
    assert (meter.first_s is None) == (meter.tokens == 0)


def test_times_are_those_of_text_and_not_of_what_surrounds_it() -> None:
    meter = StreamMeter()
    meter.feed(event(chat("")), 1.0)  # the role comes before any token
    meter.feed(event(chat("a")), 3.0)
    meter.feed(event(chat("b")), 3.5)
    meter.feed(event(chat("c")), 5.0)
    meter.feed(event({"choices": [{"delta": {}, "finish_reason": "length"}]}), 8.0)
    meter.feed(b"data: [DONE]\n\n", 9.0)
    assert (meter.first_s, meter.last_s, meter.max_gap_s) == (3.0, 5.0, 1.5)


def test_a_half_event_counts_when_it_is_whole() -> None:
    meter = StreamMeter()
    whole = event(chat("a"))
    meter.feed(whole[:-5], 1.0)
    assert meter.first_s is None
    meter.feed(whole[-5:], 2.0)
    assert meter.first_s == 2.0


def test_the_servers_own_count_goes_before_ours() -> None:
    """Several tokens may come in one event."""
    meter = StreamMeter()
    meter.feed(event(chat("a b c")), 1.0)
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    meter.feed(event({"choices": [], "usage": usage}), 2.0)
    assert meter.tokens == 3
    assert cached_tokens(meter.usage) == 8


@pytest.mark.parametrize(
    "stream",
    [
        event({"error": {"message": "no more KV"}}),
        event({"error": {"message": "no more KV"}}, (",", ":")),
        b"event: error\ndata: no more KV\n\n",
        b"event: error\n: no more KV\n\n",
    ],
)
def test_an_error_in_the_stream_is_found(stream: bytes) -> None:
    meter = StreamMeter()
    meter.feed(event(chat("a")), 1.0)
    meter.feed(stream, 2.0)
    assert meter.error is not None and "no more KV" in meter.error


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens_details": None}, {"completion_tokens": "3"}])
def test_usage_that_says_nothing_is_nothing(usage: dict[str, Any]) -> None:
    meter = StreamMeter()
    meter.feed(event(chat("a")), 1.0)
    meter.feed(event({"choices": [], "usage": {"prompt_tokens": 1, **usage}}), 1.0)
    assert meter.tokens == 1
    assert cached_tokens(meter.usage) == 0


def test_a_whole_answer_has_one_time() -> None:
    meter = WholeMeter()
    text = json.dumps({"choices": [{"text": "a b"}], "usage": {"completion_tokens": 2}}).encode()
    meter.feed(text[:10], 1.0)
    meter.feed(text[10:], 2.0)
    meter.finish(2.5)
    assert (meter.first_s, meter.last_s, meter.tokens, meter.error) == (2.5, 2.5, 2, None)


@pytest.mark.parametrize("text", [b"", b"<html>", b"[]", b'{"error": "x"}'])
def test_a_whole_answer_without_choices_is_an_error(text: bytes) -> None:
    meter = WholeMeter()
    meter.feed(text, 1.0)
    meter.finish(1.0)
    assert meter.error == text.decode() and meter.tokens == 0
