"""The load client against a server that does what it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrl_planner.errors import LoadError
from hrl_planner.load import (
    Closed,
    LoadOptions,
    LoadResult,
    Pace,
    SloTarget,
    Target,
    replay,
    summarise,
)
from hrl_planner.spec import AssignSpec
from hrl_planner.workload import Trace
from tests.builders import cluster, pool, slo_class, trace
from tests.load_upstream import Answer, Upstream, always, in_turn, upstream

OSL = 5


def make_trace(n: int = 4, gap_s: float = 0.01) -> Trace:
    return trace(np.arange(n) * gap_s, 20, OSL, duration_s=n * gap_s)


def load(
    server: Upstream | str, requests: Trace, slo: SloTarget | None = None, **options: Any
) -> LoadResult:
    url = server if isinstance(server, str) else server.url
    target = Target(url, "m")
    return asyncio.run(replay(requests, target, LoadOptions(**options), slo=slo))


def test_every_request_of_the_trace_is_sent_and_measured() -> None:
    with upstream() as server:
        result = load(server, make_trace())
    assert len(server.requests) == len(result) == 4
    assert result.finished.all() and (result.status == 200).all()
    assert (result.tokens == OSL).all()
    assert result.due_s == pytest.approx(np.arange(4) * 0.01)
    assert (result.sent_s >= result.due_s).all()
    assert (result.first_token_s >= result.sent_s).all()
    assert (result.end_s >= result.last_token_s).all()


def test_speed_compresses_the_trace() -> None:
    with upstream() as server:
        result = load(server, make_trace(4, 1.0), loop=Pace(speed=50.0))
    assert result.due_s == pytest.approx(np.arange(4) / 50)
    assert result.duration_s == pytest.approx(4 / 50)


def test_times_of_engines_that_run_faster_are_told_as_of_life() -> None:
    with upstream(always(Answer(first_s=0.05))) as server:
        result = load(server, make_trace(2, 1.0), loop=Pace(speed=100.0), engine_speed=100.0)
    assert result.due_s == pytest.approx([0.0, 1.0])
    assert result.duration_s == pytest.approx(2.0)
    assert (result.ttft_s >= 5.0).all()


def test_a_slow_first_token_is_ttft_and_a_stall_is_itl() -> None:
    plan = in_turn(Answer(first_s=0.2), Answer(stall_s=0.2))
    with upstream(plan) as server:
        result = load(server, make_trace(2, 0.1), SloTarget("all", 150.0, 25.0))
    slow, stalled = 0, 1
    assert result.ttft_s[slow] >= 0.2 > result.ttft_s[stalled]
    assert result.max_itl_s[stalled] >= 0.19
    assert result.itl_s[stalled] >= 0.19 / (OSL - 1)
    # 0.2 s over four gaps are 50 ms on average: above the target.
    assert not result.outcomes.attained.any()
    row = summarise(result).total
    assert row["ttft_attainment"] == row["itl_attainment"] == 0.5


def test_refused_requests_are_offered_ones_that_miss() -> None:
    refusal = Answer(status=429, headers={"retry-after": "7"}, body='{"error":"queue full"}')
    with upstream(in_turn(refusal, Answer())) as server:
        result = load(server, make_trace(2))
    assert result.status.tolist() == [429, 200]
    assert result.retry_after_s[0] == 7.0
    summary = summarise(result)
    assert summary.total["rejected"] == 1 and summary.total["failed"] == 0
    assert summary.total["offered"] == 2 and summary.total["attainment"] == 0.5
    assert summary.total["ttft_p99_ms"] == np.inf
    assert summary.outcomes == {"429": 1, "200": 1}
    assert "queue full" in summary.errors["429"]


@pytest.mark.parametrize(
    ("answer", "kind", "tokens"),
    [
        (Answer(reset_after=3), "reset", 3),
        (Answer(done=False), "truncated", OSL),
        (Answer(error_after=2), "engine", 2),
        (Answer(status=500, body="oops"), "http", 0),
    ],
)
def test_an_answer_that_breaks_off_is_a_failure(answer: Answer, kind: str, tokens: int) -> None:
    with upstream(in_turn(answer, Answer())) as server:
        result = load(server, make_trace(2, 0.2))
    assert result.error.tolist() == [kind, ""]
    assert result.tokens[0] == tokens
    assert np.isnan(result.itl_s[0])
    assert summarise(result).total["failed"] == 1


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with upstream(in_turn(Answer(stall_s=30.0), Answer())) as server:
        result = load(server, make_trace(2), timeout_s=0.3)
    assert result.error.tolist() == ["timeout", ""]
    assert result.tokens[0] == 1  # what came before is known


def test_what_is_not_done_in_the_time_of_grace_is_unfinished() -> None:
    with upstream(in_turn(Answer(stall_s=30.0), Answer())) as server:
        result = load(server, make_trace(2), grace_s=0.3)
    assert result.error.tolist() == ["unfinished", ""]
    assert summarise(result).total["unfinished"] == 1


def test_where_nothing_listens_every_request_fails_and_the_run_ends() -> None:
    with socket.socket() as taken:  # bound but not listening: refuses
        taken.bind(("127.0.0.1", 0))
        result = load(f"http://127.0.0.1:{taken.getsockname()[1]}", make_trace(3))
    assert result.error.tolist() == ["connect"] * 3
    assert summarise(result).total["attainment"] == 0.0


@pytest.mark.parametrize("piece", [1, 3, 7, 50])
def test_odd_boundaries_change_nothing(piece: int) -> None:
    with upstream(always(Answer(piece=piece))) as server:
        result = load(server, make_trace(2))
    assert result.finished.all() and (result.tokens == OSL).all()


def test_latency_counts_from_when_a_request_was_due_and_not_from_when_it_was_sent() -> None:
    """The client itself is held up: the requests due meanwhile are late, and say so."""

    async def run(url: str) -> LoadResult:
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.4)
        return await replay(make_trace(60, 0.01), Target(url, "m"))

    with upstream() as server:
        result = asyncio.run(run(server.url))
    late = (result.due_s > 0.1) & (result.due_s < 0.3)
    assert ((result.sent_s - result.due_s)[late] > 0.1).all()
    assert (result.ttft_s[late] > 0.1).all()
    assert result.client.lag_ms > 100
    assert any("late by itself" in warning for warning in summarise(result).warnings)


def test_a_closed_loop_keeps_so_many_on_their_way() -> None:
    with upstream(always(Answer(first_s=0.02))) as server:
        result = load(server, make_trace(2), loop=Closed(concurrency=3, requests=12))
    assert len(result) == len(server.requests) == 12
    assert server.most_running == 3
    assert server.connections == 3  # they are used again
    prompts = [request.body["prompt"] for request in server.requests]
    assert len(set(prompts)) == 12  # the trace is gone through again, with new prompts


def test_a_closed_loop_ends_with_its_time_and_lets_the_last_ones_finish() -> None:
    with upstream(always(Answer(first_s=0.05))) as server:
        result = load(server, make_trace(2), loop=Closed(concurrency=2, duration_s=0.3))
    assert result.finished.all()
    assert (result.due_s < 0.4).all() and len(result) >= 4


def test_a_connection_that_closes_while_idle_is_no_failure() -> None:
    with upstream(always(Answer(close=True))) as server:
        result = load(server, make_trace(20, 0.001))
    assert result.finished.all()
    assert len(server.requests) == 20


def test_answers_that_are_not_streamed() -> None:
    with upstream(always(Answer(first_s=0.05))) as server:
        result = load(server, make_trace(2), stream=False)
    assert result.finished.all() and (result.tokens == OSL).all()
    assert (result.ttft_s >= 0.05).all() and (result.itl_s == 0).all()


def test_what_the_server_tells_is_kept(tmp_path: Path) -> None:
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": OSL,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    headers = {"x-request-id": "r-1", "x-hrl-worker": "decode-0"}
    with upstream(always(Answer(headers=headers, usage=usage))) as server:
        result = load(server, make_trace(2))
    assert result.worker == ("decode-0",) * 2 and result.request_id == ("r-1",) * 2
    summary = summarise(result)
    assert summary.workers == {"decode-0": 2}
    assert summary.total["prefix_hit_rate"] == 16 / 20
    result.write_jsonl(tmp_path / "r.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["worker"] for row in rows] == ["decode-0"] * 2
    assert rows[0]["retry_after_s"] is None and rows[0]["attained"] is True


def test_short_answers_are_pointed_out() -> None:
    with upstream(always(Answer(tokens=2))) as server:
        summary = summarise(load(server, make_trace(3)))
    assert any("shorter than asked for" in warning for warning in summary.warnings)


def test_stopping_keeps_what_was_measured() -> None:
    async def run(url: str) -> LoadResult:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stop.set)
        return await replay(make_trace(1000, 0.05), Target(url, "m"), stop=stop)

    with upstream(in_turn(Answer(stall_s=30.0), Answer())) as server:
        result = asyncio.run(run(server.url))
    assert result.interrupted and len(result) < 1000
    summary = summarise(result)
    # The one that stalls, and perhaps one just sent, are neither hits nor misses.
    assert summary.interrupted >= 1
    assert summary.total["offered"] == len(result) - summary.interrupted
    assert summary.total["attainment"] == 1.0
    assert any("was stopped" in warning for warning in summary.warnings)


def test_cancelling_leaves_nothing_behind() -> None:
    async def run(url: str) -> int:
        task = asyncio.create_task(replay(make_trace(1000, 0.05), Target(url, "m")))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return len(asyncio.all_tasks())

    with upstream(always(Answer(stall_s=30.0))) as server:
        assert asyncio.run(run(server.url)) == 1


def test_classes_of_a_spec_are_judged_by_their_own_targets() -> None:
    spec = cluster(
        pool("aggregated"),
        slo_classes=(
            slo_class("quick", 100.0, itl_ms=1000.0, assign=AssignSpec(label="q")),
            slo_class("patient", 60_000.0, itl_ms=1000.0, assign=AssignSpec(label="p")),
        ),
    )
    mixed = make_trace(4).with_labels(["q", "p", "q", "p"])
    with upstream(always(Answer(first_s=0.15))) as server:
        result = asyncio.run(replay(mixed, Target(server.url, "m"), spec=spec))
    rows = {row["class"]: row for row in summarise(result).rows}
    assert rows["quick"]["attainment"] == 0.0 and rows["patient"]["attainment"] == 1.0
    assert rows["all"]["attainment"] == 0.5
    sent = {request.headers["x-slo-class"]: request.body["nvext"] for request in server.requests}
    assert sent["quick"] == {"router": {"ttft_target": 100.0, "itl_target": 1000.0}}


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x", "http://", "http://x:port"])
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(LoadError, match="url"):
        load(url, make_trace(1))


def test_an_empty_trace_is_refused() -> None:
    with pytest.raises(LoadError, match="no requests"):
        load("http://127.0.0.1:1", make_trace(0))
