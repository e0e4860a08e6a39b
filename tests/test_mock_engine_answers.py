"""When the tokens of a stream are written, and that none is lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from hrl_planner.mock_engine.answers import Answer, Outbox, TokenStream
from hrl_planner.mock_engine.engine import StepReport

A_STEP = cast("StepReport", None)  # the outbox asks nothing of it


class Connection:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    @property
    def words(self) -> list[str]:
        events = b"".join(self.writes).decode().split("\n\n")
        return [json.loads(e[6:])["choices"][0]["text"] for e in events if e]


class Streams:
    """Streams of one engine, with a clock the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.outbox = Outbox(lambda: self.now_s)

    def stream(self, osl: int) -> tuple[TokenStream, Connection]:
        connection: Any = Connection()
        answer = Answer(chat=False, request_id="r", model="m", isl=1, osl=osl)
        return TokenStream(answer, connection, False, self.outbox), connection


def test_tokens_are_held_until_the_engine_pauses() -> None:
    async def test() -> None:
        streams = Streams()
        (one, to_one), (other, to_other) = streams.stream(9), streams.stream(9)
        for n in (1, 2, 3):
            one.token(n)
            other.token(n)
            streams.outbox.on_step(A_STEP)
        assert to_one.writes == to_other.writes == []
        streams.outbox.flush()
        assert len(to_one.writes) == len(to_other.writes) == 1
        assert to_one.words == to_other.words == [" 00001", " 00002", " 00003"]
        streams.outbox.flush()
        assert len(to_one.writes) == 1

    asyncio.run(test())


def test_an_engine_that_never_pauses_writes_all_the_same() -> None:
    async def test() -> None:
        streams = Streams()
        stream, connection = streams.stream(9)
        for n in range(1, 9):
            stream.token(n)
            streams.now_s += 0.002
            streams.outbox.on_step(A_STEP)
        assert connection.words == [f" {n:05d}" for n in range(1, 7)]
        assert len(connection.writes) == 2

    asyncio.run(test())


def test_the_last_token_waits_for_nobody() -> None:
    async def test() -> None:
        streams = Streams()
        stream, connection = streams.stream(2)
        stream.token(1)
        assert not stream.ended.done()
        stream.token(2)
        assert stream.ended.done()
        assert connection.words == [" 00001", " 00002"]
        streams.outbox.flush()
        assert len(connection.writes) == 1

    asyncio.run(test())
