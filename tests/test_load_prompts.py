"""Prompts share tokens exactly where the trace says that they share a prefix."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.load.options import LoadOptions, Target
from hrl_planner.load.prompts import Prompts, RequestWriter, SloTarget, offer_as
from hrl_planner.workload import Trace
from tests.builders import trace

BLOCK = 8


def make_trace(prompts: list[tuple[int, list[int]]]) -> Trace:
    """Requests of (prompt tokens, block ids)."""
    lengths, blocks = zip(*prompts, strict=True)
    return trace(np.arange(len(prompts)), lengths, 5, blocks=blocks, block_tokens=BLOCK)


def tokens(requests: Trace, row: int, *, seed: int = 0, round_: int = 0) -> list[int]:
    text = Prompts(requests, "ids", 32_000, seed).text(row, round_)
    return [int(token) for token in text.split(b",")]


def shared(a: list[int], b: list[int]) -> int:
    """Leading tokens that agree."""
    differ = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return differ[0] if differ else min(len(a), len(b))


TREE = make_trace([(24, [0, 1, 2]), (20, [0, 1, 2]), (24, [0, 1, 3]), (30, [0, 1]), (30, [0, 1])])


def test_the_prompt_is_as_long_as_the_trace_says() -> None:
    for row, isl in enumerate(TREE.isl_tokens):
        assert len(tokens(TREE, row)) == isl


def test_equal_blocks_are_equal_tokens_and_the_rest_is_not() -> None:
    prompts = [tokens(TREE, row) for row in range(len(TREE))]
    assert shared(prompts[0], prompts[1]) == 20  # the whole prompt: its last block is only begun
    assert shared(prompts[0], prompts[2]) == 2 * BLOCK
    assert shared(prompts[3], prompts[4]) == 2 * BLOCK


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 3))
def test_prompts_without_blocks_share_nothing(lengths: list[int], seed: int) -> None:
    alone = make_trace([(isl + BLOCK, []) for isl in lengths])
    prompts = {tuple(tokens(alone, row, seed=seed)[:BLOCK]) for row in range(len(alone))}
    assert len(prompts) == len(lengths)


def test_another_round_keeps_prefixes_and_nothing_else() -> None:
    assert shared(tokens(TREE, 3), tokens(TREE, 3, round_=1)) == 2 * BLOCK


def test_a_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    assert tokens(TREE, 0, seed=1) == tokens(TREE, 0, seed=1)
    assert shared(tokens(TREE, 0, seed=1), tokens(TREE, 0, seed=2)) == 0


def test_words_and_ids_are_the_same_numbers() -> None:
    words = Prompts(TREE, "words", 32_000, 0).text(0).decode().split()
    assert words == [f"t{token}" for token in tokens(TREE, 0)]


def test_tokens_stay_below_the_vocabulary() -> None:
    long = make_trace([(5000, [])])
    ids = [int(t) for t in Prompts(long, "ids", 1000, 0).text(0).split(b",")]
    assert 256 <= min(ids) and max(ids) < 1000


def written(
    api: Literal["completions", "chat"], prompt: Literal["words", "ids"], **options: Any
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Path, headers and body of the first request."""
    target = Target(
        "http://127.0.0.1:8000", "a-model", api, prompt, headers={"Authorization": "Bearer x"}
    )
    slo = SloTarget("chat", 250.0, 30.5)
    writer = RequestWriter(offer_as(TREE, slo), target, LoadOptions(**options))
    head, _, body = writer.write(0).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return first, headers, json.loads(body)


def test_a_request_says_what_was_promised() -> None:
    first, headers, body = written("completions", "words")
    assert first == "POST /v1/completions HTTP/1.1"
    assert headers["x-slo-class"] == "chat"
    assert headers["authorization"] == "Bearer x"
    assert headers["host"] == "127.0.0.1:8000"
    assert body["nvext"] == {"router": {"ttft_target": 250.0, "itl_target": 30.5}}
    assert len(body.pop("prompt").split()) == 24
    assert body["model"] == "a-model" and body["max_tokens"] == 5
    assert body["ignore_eos"] is True and body["stream"] is True


def test_a_request_of_no_class_names_none() -> None:
    offered = offer_as(TREE, SloTarget())
    raw = RequestWriter(offered, Target("http://127.0.0.1:8000", "m"), LoadOptions()).write(0)
    assert b"x-slo-class" not in raw and b"nvext" not in raw


def test_a_request_can_be_a_chat_ids_or_not_streamed() -> None:
    first, _, body = written("chat", "words", stream=False, send_slo=False)
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert body["messages"][0]["role"] == "user" and "nvext" not in body
    assert body["stream"] is False and "stream_options" not in body
    assert written("completions", "ids")[2]["prompt"] == tokens(TREE, 0)
