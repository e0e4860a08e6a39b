"""What a prompt of 8,192 tokens costs the router before the decision: tokens, hashes, overlap.

    python -m benchmarks.bench_router_kv

256 workers hold the first half of every prompt and each the second halves of a few, so a look-up
walks all blocks and every worker matches. Prints microseconds, p50 and p99, one core, everything
warm; the last line is one JSON object. docs/kv-index.md explains the figures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from hrl_planner.prompt import THREAD_FROM_CHARS, Tokenizer, WordTokenizer
from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv import KvIndex, blocks_of_ids, blocks_of_text

WORKERS = 256
PROMPT_TOKENS = 8_192
BLOCK_TOKENS = 16
PROMPTS = 64
REPEATS = 2_000


def percentiles(action: Callable[[int], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Microseconds of `action(i)`, p50 and p99, after a warm-up."""
    for i in range(repeats // 20):
        action(i)
    gc.collect()
    times_us = []
    for i in range(repeats):
        start = time.perf_counter()
        action(i)
        times_us.append((time.perf_counter() - start) * 1e6)
    cuts = statistics.quantiles(times_us, n=100)
    return cuts[49], cuts[98]


def prompts() -> list[list[int]]:
    """Prompts that share their first half."""
    rng = np.random.default_rng(7)
    half = PROMPT_TOKENS // 2
    shared = rng.integers(0, 128_000, half).tolist()
    return [shared + rng.integers(0, 128_000, half).tolist() for _ in range(PROMPTS)]


def warm_index(ids: list[list[int]]) -> KvIndex:
    """An index in which each worker has answered some of the prompts."""
    index = KvIndex(BLOCK_TOKENS)
    for worker in range(WORKERS):
        index.add_worker(worker, Worker(f"w{worker}", "pool", "127.0.0.1:1"), kv_blocks=30_000)
        for prompt in range(worker % 8, PROMPTS, 8):
            index.routed(worker, blocks_of_ids(ids[prompt], BLOCK_TOKENS).hashes, 0.0)
    return index


def lookup(ids: list[list[int]], index: KvIndex) -> dict[str, tuple[float, float]]:
    """Hashing, overlap, both, and telling the index of the decision."""
    out = np.zeros(WORKERS, dtype=np.int64)
    hashes = [blocks_of_ids(prompt, BLOCK_TOKENS).hashes for prompt in ids]

    def both(i: int) -> None:
        index.overlap_blocks(blocks_of_ids(ids[i % PROMPTS], BLOCK_TOKENS).hashes, out)

    figures = {
        "hash": percentiles(lambda i: blocks_of_ids(ids[i % PROMPTS], BLOCK_TOKENS)),
        "overlap": percentiles(lambda i: index.overlap_blocks(hashes[i % PROMPTS], out)),
        "hash_and_overlap": percentiles(both),
        # Clock stands still: refreshed prompts, as in a warm index.
        "routed_known": percentiles(lambda i: index.routed(i % 8, hashes[i % 8], 1.0)),
        "routed_half_new": percentiles(
            lambda i: index.routed(i % WORKERS, hashes[i % 8][:256] + _fresh(i), 1.0), 1_000
        ),
    }
    assert out.max() > PROMPT_TOKENS // BLOCK_TOKENS // 2
    return figures


def _fresh(i: int) -> list[int]:
    return np.random.default_rng(i).integers(0, 2**63, 256).tolist()


def tokenising() -> dict[str, tuple[float, float]]:
    """Text to ids with a byte-pair tokenizer trained on the project's own pages."""
    pages = "\n".join(path.read_text() for path in sorted(Path("docs").glob("*.md")))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8_000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([pages], trainer)
    tokenizer, words = Tokenizer(backend), WordTokenizer()
    text = pages * 3
    chars = len(text) * PROMPT_TOKENS // len(tokenizer.prompt_ids({"prompt": text}))
    body = {"prompt": text[:chars]}
    print(f"{chars} characters are {len(tokenizer.prompt_ids(body))} tokens")
    short = {"prompt": text[:THREAD_FROM_CHARS]}
    many_words = {"prompt": " ".join(f"w{i}" for i in range(PROMPT_TOKENS))}
    return {
        "tokenise_8k": percentiles(lambda _: tokenizer.prompt_ids(body), 200),
        f"tokenise_{THREAD_FROM_CHARS}_chars": percentiles(lambda _: tokenizer.prompt_ids(short)),
        "word_tokenizer_8k": percentiles(lambda _: words.prompt_ids(many_words), 200),
        "text_hash_8k": percentiles(lambda _: blocks_of_text(body["prompt"], BLOCK_TOKENS)),
        "thread_hop": asyncio.run(_thread_hop()),
    }


async def _thread_hop() -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    times_us = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        await loop.run_in_executor(None, int)
        times_us.append((time.perf_counter() - start) * 1e6)
    cuts = statistics.quantiles(times_us, n=100)
    return cuts[49], cuts[98]


def main() -> None:
    """Measure and print."""
    ids = prompts()
    tracemalloc.start()
    index = warm_index(ids)
    python_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    blocks = index.sizes().routed_blocks
    print(
        f"{blocks} blocks over {WORKERS} workers, {python_bytes / blocks:.0f} bytes each in Python"
    )
    figures = lookup(ids, index) | tokenising()
    for name, (p50, p99) in figures.items():
        print(f"{name:24} p50 {p50:8.1f} us   p99 {p99:8.1f} us")
    print(json.dumps({name: [round(p, 1) for p in pair] for name, pair in figures.items()}))


if __name__ == "__main__":
    main()
