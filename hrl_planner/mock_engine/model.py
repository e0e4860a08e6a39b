"""One worker, one engine step at a time: queues, batches, prefix cache, durations.

A worker runs steps back to back while it has work. `Worker.begin_step` fills a step at its boundary
and tells how long it takes, `Worker.end_step` hands back what is done by then. Nothing here knows a
clock, a socket or a cluster. The mock engine plays it in real time; the tests play it against the
compiled simulator (tests/test_kernel_against_reference.py), so both run the worker that
docs/simulator.md describes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from hrl_planner.mock_engine.prefix_cache import CacheChange, PrefixCache


class StepTimes(Protocol):
    """How long one step takes, in seconds."""

    def prefill_s(self, requests: int, total_tokens: int, mean_prefix: float) -> float:
        """Return the time of a step over `requests` prompts with `total_tokens` new tokens."""

    def decode_s(self, batch: int, mean_context: float) -> float:
        """Return the time of an iteration of `batch` requests with this mean context."""


@dataclass(frozen=True)
class Limits:
    """What a worker can take at once."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int  # for requests that decode here
    cache_blocks: int  # prefix cache, in blocks of prompts
    cache_block_tokens: int


@dataclass(frozen=True)
class Warmup:
    """Steps that begin before `until_s` take `slowdown` times as long."""

    until_s: float = -math.inf
    slowdown: float = 1.0


@dataclass(eq=False, kw_only=True)
class Request:
    """What a worker knows of a request, and how far it is."""

    isl: int
    osl: int
    blocks: Sequence[int]  # prefix block ids
    kv_blocks: int  # KV blocks of its final length
    decodes_here: bool = True  # once its prompt is computed; else it is handed over
    cached_tokens: int = 0
    first_token_s: float = math.nan
    looked_up: bool = False  # has entered its first prefill batch
    holds_kv: bool = False  # its KV blocks are reserved
    computed: int = 0  # prompt tokens in the worker's KV cache
    generated: int = 0


R = TypeVar("R", bound=Request)


@dataclass
class Step(Generic[R]):
    """What a worker computes right now."""

    chunks: list[tuple[R, int]]  # prompt tokens per request
    decoding: list[R]


class StepEnd(NamedTuple, Generic[R]):
    """What a step brought.

    Attributes:
        finished: requests whose last token is out.
        completed: requests whose prompt is computed; those that decode here got their first token.
        remembered: per completed prompt, what became of the prefix cache.
    """

    finished: list[R]
    completed: list[R]
    remembered: list[CacheChange]


class Worker(Generic[R]):
    """A worker's queues and its step.

    Attributes:
        fifo: prompts to compute; the head may be half done.
        waiting: requests whose KV cache is here, for a place in the decode batch.
        running: the decode batch.
        reserved: KV blocks of requests that decode here, or will.
        step: the step under way, None between steps.
    """

    def __init__(self, limits: Limits, times: StepTimes, warmup: Warmup | None = None) -> None:
        """Start with nothing to do and an empty cache."""
        self.limits = limits
        self.times = times
        self.warmup = warmup or Warmup()
        self.fifo: list[R] = []
        self.waiting: list[R] = []
        self.running: list[R] = []
        self.reserved = 0
        self.cache = PrefixCache(limits.cache_blocks)
        self.step: Step[R] | None = None

    def begin_step(self, now: float) -> float | None:
        """Fill the next step and return its duration, or None when there is nothing to do."""
        self._admit()
        chunks = self._prefill_batch()
        decoding = list(self.running)
        if chunks:
            seconds = self._prefill_seconds(chunks, decoding)
        elif decoding:
            seconds = self.times.decode_s(len(decoding), mean_context(decoding))
        else:
            return None
        if now < self.warmup.until_s:
            seconds *= self.warmup.slowdown
        self.step = Step(chunks, decoding)
        return seconds

    def end_step(self, now: float) -> StepEnd[R]:
        """Book the step's tokens at its end."""
        assert self.step is not None
        step, self.step = self.step, None
        for request in step.decoding:
            _gain_token(request, now)
        finished = [request for request in step.decoding if request.generated == request.osl]
        for request in finished:
            self._leave_batch(request)
        for request, tokens in step.chunks:
            request.computed += tokens
        completed = [request for request, _ in step.chunks if request.computed == request.isl]
        remembered = []
        for request in completed:
            self.fifo.remove(request)
            remembered.append(self.cache.remember(request.blocks))
            if request.decodes_here:
                self.running.append(request)
                _gain_token(request, now)
                if request.generated == request.osl:
                    self._leave_batch(request)
                    finished.append(request)
        return StepEnd(finished, completed, remembered)

    def cancel(self, request: R) -> None:
        """Forget a request wherever it is; its place and KV blocks are free at once."""
        for queue in (self.fifo, self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        if self.step is not None:
            self.step.chunks = [chunk for chunk in self.step.chunks if chunk[0] is not request]
            self.step.decoding = [other for other in self.step.decoding if other is not request]
        if request.holds_kv:
            self._release(request)

    def overlap_tokens(self, request: Request) -> int:
        """Prompt tokens of a request that this worker's prefix cache holds."""
        return self._usable_tokens(request, self.cache.leading_hits(request.blocks))

    def _usable_tokens(self, request: Request, hits: int) -> int:
        # One token must be computed, or there is nothing to sample from.
        return min(hits * self.limits.cache_block_tokens, request.isl - 1)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.limits.max_num_seqs:
            if not self._reserve(self.waiting[0]):
                break
            self.running.append(self.waiting.pop(0))

    def _prefill_batch(self) -> list[tuple[R, int]]:
        limit = self.limits.max_num_seqs - len(self.running)
        budget = self.limits.max_num_batched_tokens - len(self.running)
        chunks: list[tuple[R, int]] = []
        for request in self.fifo:
            if budget <= 0 or len(chunks) >= limit:
                break
            if not request.looked_up:
                if request.decodes_here and not self._reserve(request):
                    break
                self._look_up(request)
            tokens = min(request.isl - request.computed, budget)
            chunks.append((request, tokens))
            budget -= tokens
        return chunks

    def _prefill_seconds(self, chunks: list[tuple[R, int]], decoding: list[R]) -> float:
        total = sum(tokens for _, tokens in chunks)
        in_front = sum(tokens * request.computed for request, tokens in chunks)
        seconds = self.times.prefill_s(len(chunks), total + len(decoding), in_front / total)
        if decoding:
            context = mean_context(decoding)
            more = self.times.decode_s(len(decoding), context) - self.times.decode_s(1, context)
            seconds += max(0.0, more)
        return seconds

    def _look_up(self, request: R) -> None:
        request.looked_up = True
        hits = self.cache.leading_hits(request.blocks)
        request.cached_tokens = request.computed = self._usable_tokens(request, hits)
        self.cache.touch(request.blocks[:hits])

    def _reserve(self, request: R) -> bool:
        if self.reserved + request.kv_blocks > self.limits.kv_blocks:
            return False
        self.reserved += request.kv_blocks
        request.holds_kv = True
        return True

    def _release(self, request: R) -> None:
        self.reserved -= request.kv_blocks
        request.holds_kv = False

    def _leave_batch(self, request: R) -> None:
        self.running.remove(request)
        self._release(request)


def _gain_token(request: Request, now: float) -> None:
    request.generated += 1
    # A request that starts again elsewhere keeps the time of the first token it ever had.
    if request.generated == 1 and math.isnan(request.first_token_s):
        request.first_token_s = now


def mean_context(decoding: Sequence[Request]) -> float:
    """Return the mean tokens in the KV cache over running requests."""
    return sum(request.isl + request.generated for request in decoding) / len(decoding)
