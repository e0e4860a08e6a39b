"""The router's index, fed by an engine's events, knows what the engine will find in its cache."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
import pytest

from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv import FeedState, KvIndex, blocks_of_ids
from tests.builders import linear_profile
from tests.engines import EngineProcess, engine, post
from tests.kv_publisher import until

BLOCK = 16
KV_BLOCKS = 64
REQUESTS = 60


def prompts(seed: int) -> list[list[int]]:
    """Up to 20 blocks each, half of them with the beginning of an earlier one."""
    rng = np.random.default_rng(seed)
    made: list[list[int]] = []
    for _ in range(REQUESTS):
        old = made[rng.integers(len(made))] if made and rng.random() < 0.5 else []
        shared = old[: rng.integers(len(old) + 1)]
        fresh = rng.integers(1_000_000, size=rng.integers(BLOCK, 10 * BLOCK)).tolist()
        made.append([*shared, *fresh][: 20 * BLOCK])
    return made


@pytest.mark.parametrize("form", ["array", "map"])
def test_the_index_foresees_every_hit(form: str) -> None:
    """The cache is so small that blocks go all the time."""
    profile = linear_profile(0.001, kv_capacity_tokens=KV_BLOCKS * BLOCK)
    options = ("--kv-events-port", 0, "--kv-replay-port", 0, "--kv-events-format", form)
    with engine("--profile", profile, *options) as running:
        foreseen, found = asyncio.run(asyncio.wait_for(follow(running), 30))
    assert sum(found) > 0
    assert foreseen == found


async def follow(running: EngineProcess) -> tuple[list[int], list[int]]:
    """Cached tokens of every request, as the index said and as the engine answered."""
    ports = running.ports
    worker = Worker(
        "engine",
        "pool",
        f"127.0.0.1:{ports['port']}",
        kv_events=f"tcp://127.0.0.1:{ports['kv_events_port']}",
        kv_replay=f"tcp://127.0.0.1:{ports['kv_replay_port']}",
    )
    index = KvIndex(BLOCK)
    index.add_worker(0, worker, KV_BLOCKS)
    blocks = np.zeros(1, np.int64)

    def overlap(prompt: list[int]) -> int:
        index.overlap_blocks(blocks_of_ids(prompt, BLOCK).hashes, blocks)
        return int(blocks[0])

    foreseen, found = [], []
    await index.start()
    try:
        await until(lambda: index.states()["engine"] == FeedState.LIVE)
        async with aiohttp.ClientSession() as session:
            for prompt in prompts(seed=3):
                foreseen.append(min(overlap(prompt) * BLOCK, len(prompt) - 1))
                _, answer = await post(session, running, prompt=prompt, max_tokens=1)
                found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
                full = len(prompt) // BLOCK
                await until(lambda prompt=prompt, full=full: overlap(prompt) == full)
    finally:
        await index.close()
    return foreseen, found
