"""Records of Dynamo's discovery as they lie in files, and the question for missed events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hrl_planner.errors import RouterError
from hrl_planner.router.kv.plane.file_store import FileStore
from hrl_planner.router.kv.plane.records import Source, SourceName, find
from hrl_planner.router.kv.plane.recovery import ask

NAME = "dyn://ns.worker.generate"


@pytest.mark.parametrize("name", ["dyn://ns.worker", "dyn://a.b.c/x", "dyn://a.b.c.d", "tcp://a"])
def test_what_is_no_name_of_a_worker_is_refused(name: str) -> None:
    with pytest.raises(RouterError, match="NAMESPACE"):
        SourceName.parse(name)


# Records as ai-dynamo 1.6.1 writes them.

_SCOPE_KEY = "namespace%2Fns%2Fcomponent%2Fworker%2Fendpoint%2Fgenerate"
CHANNEL = f"{_SCOPE_KEY}%2Ftopic%2Fkv%2Devents%2Fea4c60325c9bd"
SCOPE = {"namespace": "ns", "component": "worker", "name": "generate"}
RECORDS: dict[str, Any] = {
    f"event_channels/{CHANNEL}": {
        "type": "EventChannel",
        "scope": {"kind": "endpoint", "endpoint": SCOPE},
        "topic": "kv-events",
        "instance_id": 4121820037237181,
        "transport": {"kind": "Zmq", "config": {"endpoint": "tcp://10.0.0.5:41355"}},
    },
    f"event_sources/{CHANNEL}": {
        "type": "EventSource",
        "scope": {"kind": "endpoint", "endpoint": SCOPE},
        "topic": "kv-events",
        "publisher_id": 4121820037237181,
        "metadata": {
            "kv_state_endpoint": SCOPE,
            "worker": {"worker_id": 2906474997296303708, "dp_rank": 0},
            "publisher_id": 4121820037237181,
            "recovery_target": {
                "component": "worker",
                "endpoint": "worker_kv_query_source_ea4c60325c9bd",
                "namespace": "ns",
                "instance_id": 2906474997296303708,
                "transport": {"tcp": "10.0.0.5:38447/2855df9c62668e5c/ns/worker/query"},
                "request_plane_codec": "msgpack",
            },
        },
    },
    "mdc/ns%2Fworker%2Fgenerate%2F2855df9c62668e5c": {
        "type": "Model",
        "card_json": {"display_name": "tiny", "kv_cache_block_size": 16},
    },
}


def found(directory: Path) -> Source | None:
    return asyncio.run(find(FileStore(directory), SourceName.parse(NAME), "10.0.0.5"))


def write(store: Path, records: dict[str, Any]) -> None:
    for name, record in records.items():
        path = store / "v1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))


def test_records_say_where_a_worker_publishes(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    assert found(tmp_path) == Source(
        publisher_id=4121820037237181,
        endpoint="tcp://10.0.0.5:41355",
        worker_id=2906474997296303708,
        dp_rank=0,
        recovery="10.0.0.5:38447/2855df9c62668e5c/ns/worker/query",
        block_tokens=16,
    )


def test_a_worker_without_all_of_its_records_is_not_there_yet(tmp_path: Path) -> None:
    for missing in RECORDS:
        store = tmp_path / str(len(missing))
        write(store, {name: record for name, record in RECORDS.items() if name != missing})
        assert found(store) is None


def test_records_that_nobody_keeps_up_are_of_a_process_that_died(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    os.utime(tmp_path / "v1" / "event_channels" / CHANNEL, (0, 0))
    assert found(tmp_path) is None


def test_a_plane_that_cannot_be_followed_is_named(tmp_path: Path) -> None:
    channel = RECORDS[f"event_channels/{CHANNEL}"] | {"transport": {"kind": "Nats", "config": {}}}
    write(tmp_path, RECORDS | {f"event_channels/{CHANNEL}": channel})
    with pytest.raises(RouterError, match=r"transport\.kind 'Nats'.*DYN_EVENT_PLANE=zmq"):
        found(tmp_path)


# The question for missed events, asked of workers that do not answer as they should


@contextlib.asynccontextmanager
async def request_plane(
    acknowledge: bytes, answers: Callable[[str, int, str], Coroutine[Any, Any, None]]
) -> AsyncIterator[str]:
    """A worker's request plane; yields the target to ask. `answers` gets host, port, subject."""

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for width in (2, 2):
            await reader.readexactly(int.from_bytes(await reader.readexactly(width), "big"))
        payload = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        header = json.loads(payload[24 : 24 + int.from_bytes(payload[:8], "big")])
        way_back = json.loads(header["connection_info"]["info"])
        host, _, port = way_back["address"].rpartition(":")
        writer.write(len(acknowledge).to_bytes(4, "big") + acknowledge)
        await answers(host, int(port), way_back["subject"])
        writer.close()

    server = await asyncio.start_server(asked, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}/a/path"


async def asked_of(
    acknowledge: bytes,
    answers: Callable[[str, int, str], Coroutine[Any, Any, None]],
    timeout_s: float,
) -> bytes:
    async with request_plane(acknowledge, answers) as target:
        return await ask(target, {}, timeout_s)


def two_parts(header: Any, body: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack(">QQQ", len(encoded), len(body), 0) + encoded + body


async def say(host: str, port: int, *parts: bytes) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"".join(parts))
    writer.close()
    await writer.wait_closed()


def test_strangers_on_the_way_back_are_ignored() -> None:
    async def answers(host: str, port: int, subject: str) -> None:
        await say(host, port, b"GET / HTTP/1.1\r\n\r\n")
        await say(host, port, two_parts({"subject": "another"}), two_parts({"error": None}))
        told = two_parts({"subject": subject}), two_parts({"error": None}), two_parts("", b"yes")
        await say(host, port, *told)

    assert asyncio.run(asked_of(b"", answers, timeout_s=10.0)) == b"yes"


@pytest.mark.parametrize(
    ("acknowledge", "prologue", "error", "says"),
    [
        (b"no such path", None, ValueError, "no such path"),
        (b"", {"error": "the tree is busy"}, ValueError, "the tree is busy"),
        (b"", None, TimeoutError, "no answer within 0.2 s"),
    ],
)
def test_a_worker_without_an_answer_is_an_error(
    acknowledge: bytes, prologue: Any, error: type[Exception], says: str
) -> None:
    async def answers(host: str, port: int, subject: str) -> None:
        if prologue is not None:
            await say(host, port, two_parts({"subject": subject}), two_parts(prologue))

    with pytest.raises(error, match=says):
        asyncio.run(asked_of(acknowledge, answers, timeout_s=0.2))
