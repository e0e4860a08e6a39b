"""The prefix index: overlap equals a plain model, own decisions expire, nothing is left behind."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from dynamo.llm import RadixTree
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv import FeedState, KvIndex, blocks_of_ids, blocks_of_text
from hrl_planner.router.kv.approximate import RoutedBlocks
from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.history import History
from tests.kv_publisher import CLEARED, removed, stored

BLOCK_TOKENS = 4
CAPACITY = 8


def worker(name: str) -> Worker:
    return Worker(name, "pool", "127.0.0.1:1")


def overlaps(index: KvIndex, hashes: list[int]) -> list[int]:
    out = np.full(CAPACITY, -1, dtype=np.int64)
    index.overlap_blocks(hashes, out)
    return out.tolist()


def ids_of(blocks: list[int]) -> list[int]:
    """A prompt whose n-th block says `blocks[n]`."""
    return [block for block in blocks for _ in range(BLOCK_TOKENS)]


def hashes_of(blocks: list[int]) -> list[int]:
    return blocks_of_ids(ids_of(blocks), BLOCK_TOKENS).hashes


# --- Hashes ---------------------------------------------------------------------------------------


def test_only_full_blocks_are_hashed_and_equal_prefixes_have_equal_hashes() -> None:
    one = blocks_of_ids([1, 2, 3, 4, 5, 6, 7, 8, 9], BLOCK_TOKENS)
    other = blocks_of_ids([1, 2, 3, 4, 5, 6, 7, 0], BLOCK_TOKENS)
    assert (len(one.hashes), one.isl_tokens, one.block_tokens) == (2, 9, 4)
    assert one.hashes[0] == other.hashes[0]
    assert one.hashes[1] != other.hashes[1]


def test_text_is_hashed_in_pieces_and_its_tokens_are_estimated() -> None:
    text = "".join(chr(97 + i % 26) for i in range(70))
    one, longer = blocks_of_text(text, BLOCK_TOKENS), blocks_of_text(text + "x" * 10, BLOCK_TOKENS)
    assert len(one.hashes) == 70 // 16
    assert one.isl_tokens == 18  # 70 characters, four to a token
    assert longer.hashes[:4] == one.hashes
    assert len(set(one.hashes)) == 4
    assert all(0 <= value < 2**64 for value in one.hashes)
    coarse = blocks_of_text(text, BLOCK_TOKENS, chunk_chars=35)
    assert (len(coarse.hashes), coarse.isl_tokens) == (2, 8)


# --- The index against a plain model --------------------------------------------------------------

paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)
operation = st.one_of(
    st.tuples(st.just("store"), st.integers(0, 3), paths),
    st.tuples(st.just("remove"), st.integers(0, 3), st.lists(paths, min_size=1, max_size=3)),
    st.tuples(st.just("clear"), st.integers(0, 3), st.none()),
)


class Engine:
    """One engine and what it holds: the set of its blocks, each named by its whole prefix."""

    def __init__(self, tree: RadixTree, number: int) -> None:
        self.held = HeldBlocks(tree, number + 1)
        self.history = History("w", self.held, BLOCK_TOKENS)
        self.number = number
        self.copies: dict[tuple[int, ...], int] = {}

    def key(self, path: tuple[int, ...]) -> int:
        # Every engine has its own hashes, as vLLM has with its random seed.
        return hash((self.number, path)) & (2**64 - 1)

    def tell(self, event: list[object]) -> None:
        payload = msgspec.msgpack.encode([0.0, [event], 0])
        self.history.take(self.history.next_seq, payload)

    def store(self, blocks: list[int]) -> None:
        chain = [tuple(blocks[: n + 1]) for n in range(len(blocks))]
        # An engine stores what follows the longest prefix that it has.
        known = 0
        while known < len(chain) and chain[known] in self.copies:
            known += 1
        again = max(known - 1, 0)  # and now and then computes one more block anew
        parent = self.key(chain[again - 1]) if again else None
        self.tell(stored([self.key(p) for p in chain[again:]], ids_of(blocks[again:]), parent))
        for path in chain[again:]:
            self.copies[path] = self.copies.get(path, 0) + 1

    def remove(self, wanted: list[list[int]]) -> None:
        keys = [tuple(path) for path in wanted]
        self.tell(removed([self.key(path) for path in keys]))
        for path in keys:
            if path in self.copies:
                self.copies[path] -= 1
        gone = [path for path, copies in self.copies.items() if copies <= 0]
        for path in list(self.copies):
            if any(path[: len(g)] == g for g in gone):
                del self.copies[path]

    def clear(self) -> None:
        self.tell(CLEARED)
        self.copies.clear()

    def overlap(self, prompt: list[int]) -> int:
        n = 0
        while n < len(prompt) and tuple(prompt[: n + 1]) in self.copies:
            n += 1
        return n


@settings(max_examples=200)
@given(st.lists(operation, max_size=30), st.lists(paths, min_size=1, max_size=4))
def test_overlap_is_the_longest_prefix_whose_blocks_are_all_held(
    operations: list[tuple[str, int, list[int]]], prompts: list[list[int]]
) -> None:
    tree = RadixTree()
    engines = [Engine(tree, number) for number in range(4)]
    for name, number, argument in operations:
        engine = engines[number]
        if name == "clear":
            engine.clear()
        else:
            getattr(engine, name)(argument)
        for prompt in prompts:
            scores = tree.find_matches(hashes_of(prompt)).scores
            found = [scores.get((e.number + 1, 0), 0) for e in engines]
            assert found == [e.overlap(prompt) for e in engines]
        assert [len(e.held) for e in engines] == [len(e.copies) for e in engines]
    for engine in engines:
        engine.clear()
    assert tree.dump_tree_as_events() == []


def test_a_run_that_is_removed_head_first_leaves_the_tree_whole() -> None:
    # SGLang removes the pages of a node in reading order, one event each.
    tree = RadixTree()
    one, other = Engine(tree, 0), Engine(tree, 1)
    prompt = [1, 2, 3, 4]
    one.store(prompt)
    other.store(prompt)
    chain = [tuple(prompt[: n + 1]) for n in range(4)]
    events = [removed([one.key(path)]) for path in chain[1:]]
    one.history.take(one.history.next_seq, msgspec.msgpack.encode([0.0, events, 0]))
    assert tree.find_matches(hashes_of(prompt)).scores == {(1, 0): 1, (2, 0): 4}
    for path in chain[1:]:
        del one.copies[path]
    one.store(prompt)
    assert tree.find_matches(hashes_of(prompt)).scores == {(1, 0): 4, (2, 0): 4}


# --- Own decisions --------------------------------------------------------------------------------


def test_a_routed_prompt_counts_for_its_worker_until_its_time_is_over() -> None:
    index = KvIndex(BLOCK_TOKENS, ttl_s=120.0)
    index.add_worker(2, worker("a"), kv_blocks=100)
    index.add_worker(5, worker("b"), kv_blocks=100)
    index.routed(2, hashes_of([1, 2, 3]), 0.0)
    index.routed(5, hashes_of([1, 9]), 100.0)
    assert overlaps(index, hashes_of([1, 2, 3, 4])) == [0, 0, 3, 0, 0, 1, 0, 0]
    index.sweep(120.0)
    assert overlaps(index, hashes_of([1, 2, 3, 4])) == [0, 0, 0, 0, 0, 1, 0, 0]
    assert index.states() == {"a": FeedState.APPROXIMATE, "b": FeedState.APPROXIMATE}


def test_use_refreshes_the_prefix_that_is_used() -> None:
    index = KvIndex(BLOCK_TOKENS, ttl_s=10.0)
    index.add_worker(0, worker("a"), kv_blocks=100)
    index.routed(0, hashes_of([1, 2, 3]), 0.0)
    index.routed(0, hashes_of([1, 2, 7]), 6.0)
    index.sweep(10.0)
    assert overlaps(index, hashes_of([1, 2, 3]))[0] == 2
    assert index.sizes().routed_blocks == 3
    index.sweep(16.0)
    assert index.sizes().routed_blocks == 0


def test_the_prompts_routed_longest_ago_make_room_from_their_ends() -> None:
    index = KvIndex(BLOCK_TOKENS, ttl_s=1_000.0)
    index.add_worker(0, worker("a"), kv_blocks=5)
    index.routed(0, hashes_of([1, 2, 3]), 0.0)
    index.routed(0, hashes_of([4, 5, 6]), 1.0)
    assert index.sizes().routed_blocks == 5
    assert overlaps(index, hashes_of([1, 2, 3]))[0] == 2
    index.routed(0, hashes_of([7] * 9), 2.0)
    assert index.sizes().routed_blocks == 5
    assert overlaps(index, hashes_of([4, 5, 6]))[0] == 0
    assert overlaps(index, hashes_of([7] * 9))[0] == 5


class ModelOfRouted:
    """Deadlines per block, plainly: a routed prompt refreshes each of its blocks."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.deadline: dict[tuple[int, ...], float] = {}

    def routed(self, prompt: list[int], now_s: float) -> None:
        for n in range(len(prompt)):
            self.deadline[tuple(prompt[: n + 1])] = now_s + self.ttl_s
        self.sweep(now_s)

    def sweep(self, now_s: float) -> None:
        self.deadline = {path: d for path, d in self.deadline.items() if d > now_s}


@settings(max_examples=200)
@given(st.lists(st.tuples(paths, st.integers(0, 7)), max_size=40))
def test_routed_blocks_live_as_long_as_a_deadline_per_block_says(
    decisions: list[tuple[list[int], int]],
) -> None:
    tree = RadixTree()
    blocks, model = RoutedBlocks(tree, 1, 10.0, max_blocks=1_000), ModelOfRouted(10.0)
    now_s = 0.0
    for prompt, wait_s in decisions:
        now_s += wait_s
        blocks.routed(hashes_of(prompt), now_s)
        model.routed(prompt, now_s)
        assert len(blocks) == len(model.deadline)
        assert tree.find_matches(hashes_of(prompt)).scores == {(1, 0): len(prompt)}
    blocks.sweep(now_s + 10.0)
    assert (len(blocks), blocks.waiting, tree.dump_tree_as_events()) == (0, 0, [])


# --- Workers come and go --------------------------------------------------------------------------


def test_a_slot_that_is_used_again_starts_empty() -> None:
    index = KvIndex(BLOCK_TOKENS)
    index.add_worker(1, worker("a"), kv_blocks=100)
    index.routed(1, hashes_of([1, 2]), 0.0)
    index.add_worker(1, worker("a"), kv_blocks=100)
    assert overlaps(index, hashes_of([1, 2]))[1] == 2
    index.add_worker(1, worker("b"), kv_blocks=100)
    assert overlaps(index, hashes_of([1, 2]))[1] == 0
    assert list(index.states()) == ["b"]


def test_a_decision_for_a_worker_that_has_just_gone_does_no_harm() -> None:
    index = KvIndex(BLOCK_TOKENS)
    index.routed(1, hashes_of([1, 2]), 0.0)
    index.drop_worker(1)
    assert overlaps(index, hashes_of([1, 2])) == [0] * CAPACITY


def test_a_slot_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="70000"):
        KvIndex(BLOCK_TOKENS).add_worker(70_000, worker("a"), kv_blocks=1)


def test_thousands_of_workers_come_and_go_and_nothing_is_left() -> None:
    index = KvIndex(BLOCK_TOKENS)
    rng = np.random.default_rng(3)
    for n in range(4_000):
        index.add_worker(n % CAPACITY, worker(f"w{n}"), kv_blocks=20)
        for _ in range(3):
            index.routed(n % CAPACITY, hashes_of(rng.integers(0, 4, 6).tolist()), float(n))
        if n % 3 == 0:
            index.drop_worker(n % CAPACITY)
    for slot in range(CAPACITY):
        index.drop_worker(slot)
    sizes = index.sizes()
    assert (sizes.event_blocks, sizes.routed_blocks, sizes.workers) == (0, 0, 0)
    assert index._tree.dump_tree_as_events() == []


def test_sustained_events_leave_no_more_than_what_the_engine_holds() -> None:
    tree = RadixTree()
    engine = Engine(tree, 0)
    for n in range(3_000):
        engine.store([n, n + 1])
        if n >= 10:
            engine.remove([[n - 10, n - 9], [n - 10]])
    assert len(engine.held) == 20
    assert len(engine.history._path_of) == 20
    assert (
        sum(
            len(json.loads(e)["event"]["data"]["stored"]["blocks"])
            for e in tree.dump_tree_as_events()
        )
        == 20
    )


def test_two_hashes_for_one_block_and_one_hash_for_two_leave_nothing_behind() -> None:
    tree = RadixTree()
    engine = Engine(tree, 0)
    engine.tell(stored([1, 2], ids_of([5, 6])))
    engine.tell(stored([1, 3], ids_of([7, 8])))  # hash 1 again, for other tokens
    engine.tell(stored([9], ids_of([5])))  # the first block under another hash
    for key in (1, 1, 2, 3, 9, 4):
        engine.tell(removed([key]))
    assert (len(engine.held), len(engine.history._path_of)) == (0, 0)
    assert tree.dump_tree_as_events() == []
