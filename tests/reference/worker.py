"""Requests and the workers that serve them, one object each and one engine step at a time.

A worker runs steps back to back while it has work. `Replica.begin_step` fills a step at its
boundary and tells how long it takes, `Replica.end_step` hands back what is done by then.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from hrl_planner.spec import PoolSpec
from tests.reference.latency import StepTimes

UNFINISHED, FINISHED, REJECTED = range(3)


@dataclass(eq=False)
class Request:
    """One offered request: what it asks for, how far it is, and its result row."""

    index: int
    arrival_s: float
    class_id: int
    isl: int
    osl: int
    blocks: list[int]  # prefix block ids
    kv_blocks: int  # KV blocks of its final length
    prefill_pool: int = -1
    decode_pool: int = -1
    cached_tokens: int = 0
    first_token_s: float = np.nan
    finish_s: float = np.nan
    status: int = UNFINISHED
    restarts: int = 0
    worker: Replica | None = None
    under_way: bool = False  # its KV cache is on the way to `worker`
    expected_tokens: int = 0  # prompt tokens to compute, as the router foresaw them
    looked_up: bool = False  # has entered its first prefill batch
    computed: int = 0  # prompt tokens in the worker's KV cache
    generated: int = 0

    def forget_progress(self) -> None:
        """Lose every token: the worker died."""
        self.prefill_pool = self.decode_pool = -1
        self.cached_tokens = 0
        self.worker = None
        self.under_way = self.looked_up = False
        self.computed = self.generated = 0


class State(Enum):
    """The life of a replica."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(eq=False)
class Pool:
    """What all workers of a pool share."""

    index: int
    spec: PoolSpec
    times: StepTimes
    first_slot: int
    kv_blocks: int  # capacity for requests
    kv_tokens: int
    cache_blocks: int  # capacity of the prefix cache, in blocks of the trace
    cache_block_tokens: int
    target: int = 0
    starts: int = 0

    @property
    def prefills(self) -> bool:
        """Whether requests enter the cluster here."""
        return self.spec.role in ("prefill", "aggregated")

    @property
    def aggregated(self) -> bool:
        """Whether requests stay here for their answer."""
        return self.spec.role == "aggregated"


@dataclass
class Step:
    """What a worker computes right now."""

    chunks: list[tuple[Request, int]]  # prompt tokens per request
    decoding: list[Request]


@dataclass(eq=False)
class Replica:
    """One worker from its start to its end."""

    pool: Pool
    slot: int
    ready_s: float
    start: int  # the how manieth of its pool, from 0: says which draws are its own
    state: State = State.STARTING
    fifo: list[Request] = field(default_factory=list)  # prompts, the head may be half done
    waiting: list[Request] = field(default_factory=list)  # for a place in the decode batch
    running: list[Request] = field(default_factory=list)
    assigned: list[Request] = field(default_factory=list)  # all of these and those under way
    reserved: int = 0  # KV blocks
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)  # least recent first
    step: Step | None = None
    step_ends_s: float = 0.0  # of the step under way
    waking: bool = False  # idle, and about to look at its queues

    def begin_step(self, now: float) -> float | None:
        """Fill the next step and return its duration, or None when there is nothing to do."""
        self._admit()
        chunks = self._prefill_batch()
        decoding = list(self.running)
        if chunks:
            seconds = self._prefill_seconds(chunks, decoding)
        elif decoding:
            seconds = self.pool.times.decode_s(len(decoding), mean_context(decoding))
        else:
            return None
        startup = self.pool.spec.startup
        if now < self.ready_s + startup.warmup_s:
            seconds *= startup.warmup_slowdown
        self.step = Step(chunks, decoding)
        return seconds

    def end_step(self, now: float) -> tuple[list[Request], list[Request]]:
        """Book the step's tokens; return the requests finished and the prompts completed."""
        assert self.step is not None
        step, self.step = self.step, None
        for request in step.decoding:
            self._gain_token(request, now)
        finished = [request for request in self.running if request.generated == request.osl]
        for request in finished:
            self._leave_batch(request)
        for request, tokens in step.chunks:
            request.computed += tokens
        completed = [request for request, _ in step.chunks if request.computed == request.isl]
        for request in completed:
            self.fifo.remove(request)
            self._remember(request)
            if self.pool.aggregated:
                self.running.append(request)
                self._gain_token(request, now)
                if request.generated == request.osl:
                    self._leave_batch(request)
                    finished.append(request)
        return finished, completed

    def cached_blocks(self, request: Request) -> int:
        """How many leading blocks of a prompt this worker's prefix cache holds."""
        hits = 0
        while hits < len(request.blocks) and request.blocks[hits] in self.cache:
            hits += 1
        return hits

    def overlap_tokens(self, request: Request) -> int:
        """Prompt tokens of a request that this worker's prefix cache holds."""
        return min(self.cached_blocks(request) * self.pool.cache_block_tokens, request.isl - 1)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.pool.spec.max_num_seqs:
            if not self._reserve(self.waiting[0]):
                break
            self.running.append(self.waiting.pop(0))

    def _prefill_batch(self) -> list[tuple[Request, int]]:
        limit = self.pool.spec.max_num_seqs - len(self.running)
        budget = self.pool.spec.max_num_batched_tokens - len(self.running)
        chunks: list[tuple[Request, int]] = []
        for request in self.fifo:
            if budget <= 0 or len(chunks) >= limit:
                break
            if not request.looked_up:
                if self.pool.aggregated and not self._reserve(request):
                    break
                self._look_up(request)
            tokens = min(request.isl - request.computed, budget)
            chunks.append((request, tokens))
            budget -= tokens
        return chunks

    def _prefill_seconds(self, chunks: list[tuple[Request, int]], decoding: list[Request]) -> float:
        times = self.pool.times
        total = sum(tokens for _, tokens in chunks)
        in_front = sum(tokens * request.computed for request, tokens in chunks)
        seconds = times.prefill_s(len(chunks), total + len(decoding), in_front / total)
        if decoding:
            context = mean_context(decoding)
            seconds += max(0.0, times.decode_s(len(decoding), context) - times.decode_s(1, context))
        return seconds

    def _reserve(self, request: Request) -> bool:
        if self.reserved + request.kv_blocks > self.pool.kv_blocks:
            return False
        self.reserved += request.kv_blocks
        return True

    def _gain_token(self, request: Request, now: float) -> None:
        request.generated += 1
        if np.isnan(request.first_token_s):
            request.first_token_s = now

    def _leave_batch(self, request: Request) -> None:
        self.running.remove(request)
        self.reserved -= request.kv_blocks

    def _look_up(self, request: Request) -> None:
        request.looked_up = True
        request.cached_tokens = request.computed = self.overlap_tokens(request)
        for block in reversed(request.blocks[: self.cached_blocks(request)]):
            self.cache.move_to_end(block)

    def _remember(self, request: Request) -> None:
        for block in reversed(request.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.pool.cache_blocks:
            self.cache.popitem(last=False)


def mean_context(decoding: list[Request]) -> float:
    """Return the mean tokens in the KV cache over running requests."""
    return sum(request.isl + request.generated for request in decoding) / len(decoding)
