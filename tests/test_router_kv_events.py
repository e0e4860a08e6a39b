"""KV events over real sockets: joining late, gaps, lost connections, foreign formats."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest

from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv import FeedState, KvIndex, blocks_of_ids
from tests.kv_publisher import CLEARED, Publisher, removed, stored, until

BLOCK_TOKENS = 4
PROMPT = list(range(100, 112))  # three blocks
HASHES = blocks_of_ids(PROMPT, BLOCK_TOKENS).hashes
LIVE, APPROXIMATE, LOST = FeedState.LIVE, FeedState.APPROXIMATE, FeedState.LOST


class Router:
    """The index with one worker in slot 3, and a clock the test moves."""

    def __init__(self, publisher: Publisher) -> None:
        self.now_s = 0.0
        self.index = KvIndex(BLOCK_TOKENS, ttl_s=60.0, silence_s=20.0, clock=lambda: self.now_s)
        self.worker = Worker(
            "w",
            "pool",
            "127.0.0.1:1",
            kv_events=publisher.endpoint,
            kv_replay=publisher.replay_endpoint,
        )
        self.index.add_worker(3, self.worker, kv_blocks=1_000)

    @property
    def state(self) -> FeedState:
        return self.index.states()["w"]

    @property
    def overlap(self) -> int:
        out = np.zeros(8, dtype=np.int64)
        self.index.overlap_blocks(HASHES, out)
        assert out.sum() == out[3]
        return int(out[3])

    async def sees(self, state: FeedState, overlap: int) -> None:
        await until(lambda: (self.state, self.overlap) == (state, overlap))


@contextlib.asynccontextmanager
async def routing(publisher: Publisher) -> AsyncIterator[Router]:
    router = Router(publisher)
    await router.index.start()
    try:
        yield router
    finally:
        await router.index.close()


def async_test(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 30.0))

    return run


@contextlib.asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[Publisher]:
    publisher = Publisher(**options)
    try:
        yield publisher
    finally:
        await publisher.close()


@async_test
async def test_a_router_that_joins_late_learns_everything_from_the_replay() -> None:
    async with engine() as publisher:
        await publisher.publish(stored([1, 2], PROMPT[:8]))
        await publisher.publish(stored([3], PROMPT[8:], 2))
        async with routing(publisher) as router:
            await router.sees(LIVE, 3)
            await publisher.publish(removed([3]))
            await router.sees(LIVE, 2)


@async_test
async def test_an_engine_that_has_published_nothing_is_known_to_be_empty() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await router.sees(LIVE, 0)


@async_test
async def test_an_engine_without_replay_is_live_when_it_is_heard_from_its_first_batch() -> None:
    async with engine(replay=False) as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await router.sees(APPROXIMATE, 0)
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)


@async_test
async def test_joining_late_without_replay_own_decisions_and_events_both_count() -> None:
    async with engine(replay=False) as publisher:
        await publisher.publish(stored([9], [7] * 4))
        async with routing(publisher) as router:
            await publisher.subscribed()
            router.index.routed(3, HASHES[:1], 0.0)
            await publisher.publish(stored([1, 2], PROMPT[:8]))
            await router.sees(APPROXIMATE, 2)
            await publisher.publish(removed([2, 1]))
            await router.sees(APPROXIMATE, 1)


@async_test
async def test_a_gap_is_filled_from_the_replay() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await router.sees(LIVE, 0)
        await publisher.publish(stored([1], PROMPT[:4]))
        await publisher.publish(stored([2], PROMPT[4:8], 1), lose=True)
        await publisher.publish(stored([3], PROMPT[8:], 2))
        await router.sees(LIVE, 3)


@async_test
async def test_a_gap_without_replay_starts_the_index_anew_until_the_cache_is_cleared() -> None:
    async with engine(replay=False) as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)
        await publisher.publish(removed([3]), lose=True)
        await publisher.publish(stored([8], [7] * 4))
        await router.sees(APPROXIMATE, 0)
        router.index.routed(3, HASHES, 0.0)
        assert router.overlap == 3
        await publisher.publish(CLEARED, stored([1], PROMPT[:4]))
        await until(lambda: router.state == LIVE)
        router.index.sweep(1.0)
        assert router.overlap == 1


@async_test
async def test_a_gap_older_than_the_replay_buffer_starts_the_index_anew() -> None:
    async with engine(buffer_steps=1) as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)
        await publisher.publish(removed([3]), lose=True)
        await publisher.publish(stored([7], [7] * 4), lose=True)
        await publisher.publish(stored([1], PROMPT[:4]))
        await router.sees(APPROXIMATE, 1)


@async_test
async def test_a_lost_connection_keeps_what_is_known_and_own_decisions_stand_in() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish(stored([1], PROMPT[:4]))
        await router.sees(LIVE, 1)
        publisher.disconnect()
        await router.sees(LOST, 1)
        router.index.routed(3, HASHES[:2], 0.0)
        assert router.overlap == 2
        router.now_s = 61.0
        router.index.sweep(61.0)
        assert router.index.sizes().event_blocks == 0
        assert router.overlap == 0


@async_test
async def test_the_same_engine_is_taken_up_where_it_was_left() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish(stored([1], PROMPT[:4]))
        await router.sees(LIVE, 1)
        publisher.disconnect()
        await router.sees(LOST, 1)
        await publisher.publish(stored([2], PROMPT[4:8], 1), lose=True)
        publisher.reconnect()
        await router.sees(LIVE, 2)


@pytest.mark.parametrize("replay", [True, False])
@async_test
async def test_an_engine_that_restarts_is_empty(replay: bool) -> None:
    async with engine(replay=replay) as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await publisher.publish(stored([8], [7] * 4))
        await router.sees(LIVE, 3)
        publisher.disconnect()
        await router.sees(LOST, 3)
        publisher._buffer.clear()
        publisher._seq = 0
        publisher.reconnect()
        await publisher.subscribed()
        if replay:
            await router.sees(LIVE, 0)
        await publisher.publish(stored([1], PROMPT[:4]))
        await router.sees(LIVE, 1)


@async_test
async def test_silence_while_requests_run_counts_as_lost_until_the_next_event() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.subscribed()
        await router.sees(LIVE, 0)
        router.index.sweep(1_000.0)
        assert router.state == LIVE
        router.index.routed(3, HASHES, 1_000.0)
        router.index.sweep(1_019.0)
        assert router.state == LIVE
        router.index.sweep(1_021.0)
        assert router.state == LOST
        await publisher.publish(stored([1], PROMPT[:4]))
        await router.sees(LIVE, 1)


@async_test
async def test_another_block_size_is_refused_with_one_line(caplog: Any) -> None:
    async with engine() as publisher:
        await publisher.publish(stored([1], [1] * 8, None, 8), stored([2], [1] * 8, 1, 8))
        with caplog.at_level(logging.ERROR, "hrl_planner"):
            async with routing(publisher) as router:
                await router.sees(APPROXIMATE, 0)
                await until(lambda: bool(caplog.records))
                router.index.routed(3, HASHES, 0.0)
                assert router.overlap == 3
        assert [r.getMessage() for r in caplog.records] == [
            "worker w: KV events refused: its blocks have 8 tokens, the router's 4; set "
            "block_tokens of the router or --block-size of the engine"
        ]


@async_test
async def test_blocks_that_no_prompt_of_the_router_can_match_are_left_out() -> None:
    on_host = stored([1], PROMPT[:4], None, 4, None, "CPU_PINNED")
    of_adapter = stored([1], PROMPT[:4], None, 4, 7, "GPU")
    salted = stored([1], PROMPT[:4], None, 4, None, "GPU", None, [["salt"]])
    follows_salted = stored([2], PROMPT[4:8], 1, 4, None, "GPU", None, None, 0)
    windowed = stored([1], PROMPT[:4], None, 4, None, "GPU", None, None, 1, "sliding_window")
    full = stored([5], [9] * 4, None, 4, None, "GPU", None, None, 0, "full_attention")
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish(on_host, of_adapter, salted, follows_salted, windowed, full)
        await until(lambda: router.index.sizes().event_blocks == 1)
        await publisher.publish(removed([5], "GPU", 1), removed([5], "CPU_PINNED"))
        await publisher.publish(stored([1], PROMPT[:4], None, 4, None, "GPU", None, None, 0))
        await router.sees(LIVE, 1)
        assert router.index.sizes().event_blocks == 2


def as_map(batch_as_map: bool, *events: dict[str, Any]) -> bytes:
    batch: Any = [0.5, list(events), 0]
    if batch_as_map:
        batch = {"ts": 0.5, "events": list(events), "data_parallel_rank": 0}
    return msgspec.msgpack.encode(batch)


@pytest.mark.parametrize("batch_as_map", [True, False])
@async_test
async def test_later_vllm_writes_maps_and_hashes_of_32_bytes(batch_as_map: bool) -> None:
    def block(n: int) -> bytes:
        return bytes(24) + (2**64 - n).to_bytes(8, "big")

    first = {
        "type": "BlockStored",
        "block_hashes": [block(1), block(2)],
        "parent_block_hash": None,
        "token_ids": PROMPT[:8],
        "block_size": 4,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "kv_cache_spec_kind": "full_attention",
        "locality": "a field of tomorrow",
    }
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish_payload(
            as_map(batch_as_map, first, {"type": "BlockMoved", "whither": 3})
        )
        await router.sees(LIVE, 2)
        # The same 64 bits as a negative integer, as SGLang writes its hashes.
        await publisher.publish(removed([-2]))
        await router.sees(LIVE, 1)


@async_test
async def test_a_batch_that_cannot_be_read_starts_the_index_anew() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)
        await publisher.publish_payload(b"\xc1nonsense")
        await router.sees(APPROXIMATE, 0)
        await publisher.publish(stored([1], PROMPT))  # twelve tokens for one block of four
        await publisher.publish(stored([1], ["a", "b", "c", -1]))
        await publisher.publish(stored([0.5], PROMPT[:4]))
        await publisher.publish("BlockStored", 7, None)
        await publisher.publish(CLEARED)
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)


@async_test
async def test_a_dropped_worker_leaves_nothing_and_its_slot_starts_empty() -> None:
    async with engine() as publisher, routing(publisher) as router:
        await publisher.publish(stored([1, 2, 3], PROMPT))
        await router.sees(LIVE, 3)
        router.index.drop_worker(3)
        await publisher.publish(stored([4], [7] * 4))
        assert router.overlap == 0
        router.index.add_worker(3, Worker("other", "pool", "127.0.0.1:2"), kv_blocks=10)
        assert router.overlap == 0
        assert router.index.states() == {"other": APPROXIMATE}
        sizes = router.index.sizes()
        assert (sizes.event_blocks, sizes.routed_blocks, sizes.workers) == (0, 0, 1)


@async_test
async def test_an_endpoint_that_is_none_is_reported_and_the_worker_stays_usable() -> None:
    async with engine() as publisher:
        publisher.endpoint = "nonsense"
        async with routing(publisher) as router:
            router.index.routed(3, HASHES, 0.0)
            await router.sees(LOST, 3)


@async_test
async def test_what_a_full_queue_dropped_from_a_replay_is_asked_again() -> None:
    async with engine(replay_queue=2) as publisher:
        for n, parent in enumerate((None, 1, 2)):
            await publisher.publish(stored([n + 1], PROMPT[n * 4 : n * 4 + 4], parent))
        async with routing(publisher) as router:
            await router.sees(LIVE, 3)
            assert publisher.replays_asked == 2


@async_test
async def test_a_long_replay_is_taken_in_full() -> None:
    async with engine() as publisher:
        parent = None
        for n in range(3_000):
            await publisher.publish(stored([n + 1], [n] * 4, parent))
            parent = n + 1
        async with routing(publisher) as router:
            await until(lambda: router.state == LIVE)
            assert router.index.sizes().event_blocks == 3_000
