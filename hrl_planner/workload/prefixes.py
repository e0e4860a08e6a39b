"""Where shared prefixes come from: system prompts and conversations that grow turn by turn.

Every prompt is seen as a row of blocks that starts with some leading blocks of an earlier row, its
parent, and goes on with blocks of its own. The first turn of a conversation has a system prompt as
parent, each later turn the turn before. That tree is all there is to prefix reuse, and laying it
out takes one pass over the rows (`_rows.grow_tree`).

`SessionModel` holds the figures of one kind of traffic. `CONVERSATION` reproduces the Mooncake
conversation trace (how each figure was fitted: docs/workload.md); `AGENTIC` is tool loops on few
long prompts; `ASSISTANT` is short chat behind one of several system prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled
from hrl_planner.workload._rows import grow_tree
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.trace import DEFAULT_BLOCK_TOKENS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Number = TypeVar("Number", np.int64, np.float64)

MAX_TURNS = 64


@dataclass(frozen=True, slots=True)
class SystemPrompts:
    """The fixed prompts that applications put in front.

    Attributes:
        count: how many different ones.
        tokens: how long they are.
        zipf: popularity falls with rank to this power; 0 makes all equally popular.
    """

    count: int
    tokens: Lengths
    zipf: float = 1.0


@dataclass(frozen=True, slots=True)
class SessionModel:
    """One kind of conversation.

    Attributes:
        first: tokens of the first prompt after the system prompt.
        added: tokens each later turn adds to the previous prompt and answer (user or tool).
        output: tokens of an answer.
        turns_shape: with `turns_scale`, the Lomax law of the number of turns:
            P(more than k turns) = (1 + k / scale) ** -shape. A scale of 0 makes every
            conversation one turn long.
        turns_scale: see `turns_shape`.
        gap_median_s: median time from one turn's arrival to the next.
        gap_sigma: standard deviation of the logarithm of that time.
        edit_probability: chance that a turn goes back and changes something further up: it then
            shares only a part of the previous prompt, on average a third.
        system: the system prompts; None for none.
        max_isl: a conversation that grows past it ends.
    """

    first: Lengths
    added: Lengths
    output: Lengths
    turns_shape: float = 3.0
    turns_scale: float = 0.0
    gap_median_s: float = 60.0
    gap_sigma: float = 1.0
    edit_probability: float = 0.0
    system: SystemPrompts | None = None
    max_isl: int = 131_072

    @property
    def mean_turns(self) -> float:
        """Mean number of turns of a conversation."""
        if self.turns_scale <= 0:
            return 1.0
        k = np.arange(MAX_TURNS)
        return float(((1 + k / self.turns_scale) ** -self.turns_shape).sum())

    @property
    def warm_up_s(self) -> float:
        """How long before time 0 conversations must start for the load at 0 to be settled."""
        mean_gap = self.gap_median_s * np.exp(self.gap_sigma**2 / 2)
        return float(min(3600.0, 4 * (self.mean_turns - 1) * mean_gap + mean_gap))

    def draw_turns(self, n: int, rng: np.random.Generator) -> Ints:
        """Numbers of turns of n conversations."""
        if self.turns_scale <= 0:
            return np.ones(n, dtype=np.int64)
        lomax = self.turns_scale * rng.pareto(self.turns_shape, n)
        return 1 + np.minimum(lomax, MAX_TURNS - 1).astype(np.int64)


# Mooncake FAST25 conversation trace, 12,031 requests. Median gap 133 s; P(> k turns) 0.306, 0.129,
# 0.066, 0.038, 0.023 for k = 1..5; 15 % of later turns branch; one block common to all.
CONVERSATION = SessionModel(
    first=Lengths(mean=10_700, cv=2.0, low=390, high=125_600),
    added=Lengths(mean=2_000, cv=38.0, low=1, high=90_000),
    output=Lengths(mean=350, cv=0.85, high=2_000),
    turns_shape=3.28,
    turns_scale=2.5,
    gap_median_s=133.0,
    gap_sigma=0.97,
    edit_probability=0.15,
    system=SystemPrompts(1, Lengths(mean=512, distribution="constant")),
    max_isl=126_200,
)

# Tool loops: an agent's prompt and tool descriptions are long and few; a turn adds a tool's result
# and follows within seconds.
AGENTIC = SessionModel(
    first=Lengths(mean=900, cv=1.0, low=32, high=16_384),
    added=Lengths(mean=700, cv=1.5, low=16, high=16_384),
    output=Lengths(mean=180, cv=0.8, high=4_096),
    turns_shape=3.0,
    turns_scale=12.0,
    gap_median_s=9.0,
    gap_sigma=0.8,
    edit_probability=0.03,
    system=SystemPrompts(24, Lengths(mean=8_192, cv=0.35, low=4_096, high=24_576), zipf=0.8),
    max_isl=65_536,
)

# Chat: lengths as in the Azure 2023 conversation trace (mean 1155 in, 211 out), a third of the
# prompt a system prompt.
ASSISTANT = SessionModel(
    first=Lengths(mean=380, cv=1.2, low=8, high=8_192),
    added=Lengths(mean=120, cv=1.5, low=4, high=8_192),
    output=Lengths(mean=211, cv=0.77, high=2_048),
    turns_shape=3.0,
    turns_scale=2.6,
    gap_median_s=45.0,
    gap_sigma=0.9,
    edit_probability=0.05,
    system=SystemPrompts(40, Lengths(mean=420, cv=0.6, low=64, high=2_048), zipf=1.0),
    max_isl=14_336,
)

SESSION_MODELS: dict[str, SessionModel] = {
    "conversation": CONVERSATION,
    "agentic": AGENTIC,
    "assistant": ASSISTANT,
}


@dataclass(frozen=True, slots=True)
class Turns:
    """All turns of many conversations, conversation by conversation, in order.

    Attributes:
        at_s: arrival times; may lie outside the trace, the caller cuts.
        session: index of the conversation.
        isl: prompt tokens.
        osl: output tokens.
        block_ids: prefix blocks of all turns, ids not dense.
        block_offsets: bounds of each turn's blocks.
    """

    at_s: Floats
    session: Ints
    isl: Ints
    osl: Ints
    block_ids: NDArray[np.int32]
    block_offsets: Ints


def converse(
    model: SessionModel,
    start_s: Floats,
    length_factor: Floats,
    rng: np.random.Generator,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
) -> Turns:
    """Let conversations that begin at `start_s` take their course.

    Args:
        model: what they are like.
        start_s: when each begins.
        length_factor: multiplies the mean lengths of each one's own text.
        rng: randomness; where it stands afterwards is not promised.
        block_tokens: tokens per prefix block.
    """
    counts = model.draw_turns(len(start_s), rng)
    n = int(counts.sum())
    session = np.repeat(np.arange(len(start_s)), counts)
    opening = np.zeros(n, dtype=np.bool_)
    opening[np.cumsum(counts) - counts] = True
    opens, later = np.flatnonzero(opening), np.flatnonzero(~opening)
    # Everything is drawn for all turns, so that one turn's course changes no other's luck; what
    # follows from the draws is worked out only where it is used.
    drawn = rng.standard_normal(n)
    step_s = start_s[session]
    step_s[later] = np.exp(model.gap_sigma * drawn[later]) * model.gap_median_s
    at_s = _running_sum(step_s, opening)
    osl = model.output.sample(n, rng)
    edited = (rng.random(n) < model.edit_probability) & ~opening
    system_of, system_tokens = _system_prompts(model.system, len(start_s), rng)
    system_isl = system_tokens[system_of]
    first = model.first.draw(n, rng)
    step = np.empty(n, dtype=np.int64)
    step[opens] = model.first.tokens(first[opens], model.first.mean * length_factor) + system_isl
    if later.size:
        # An edited turn replaces the last answer instead of following it.
        step[later] = np.where(edited[later], 0, osl[later - 1]) + model.added.tokens(
            model.added.draw(n, rng)[later], model.added.mean * length_factor[session[later]]
        )
    isl = _running_sum(step, opening)
    kept = np.concatenate(([0], isl[:-1])) if n else isl
    if later.size:
        part = rng.random(n)
        kept[edited] = (kept[edited] * part[edited] ** 2).astype(np.int64)
    kept = np.maximum(kept, np.minimum(system_isl[session], isl))
    n_prompts = len(system_tokens)  # their rows come before those of the turns
    parent = np.arange(n_prompts - 1, n_prompts - 1 + n)
    parent[opens] = system_of
    shared = kept // block_tokens
    short = isl <= model.max_isl
    if not short.all():  # prompts only grow: what is dropped is a conversation's end
        row = np.concatenate((np.arange(n_prompts), n_prompts - 1 + np.cumsum(short)))
        parent, shared = row[parent[short]], shared[short]
        at_s, session, isl, osl = at_s[short], session[short], isl[short], osl[short]
    ids, offsets = grow_tree(
        np.concatenate((np.full(n_prompts, -1), parent)),
        np.concatenate((np.zeros(n_prompts, dtype=np.int64), shared)),
        np.concatenate((system_tokens // block_tokens, -(-isl // block_tokens))),
    )
    first_block = offsets[n_prompts]
    return Turns(at_s, session, isl, osl, ids[first_block:], offsets[n_prompts:] - first_block)


def _system_prompts(
    system: SystemPrompts | None, n: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Which system prompt each of n conversations has, and how long each of them is."""
    if system is None:
        return np.zeros(n, dtype=np.int64), np.zeros(1, dtype=np.int64)
    popularity = np.arange(1, system.count + 1, dtype=np.float64) ** -system.zipf
    below = np.cumsum(popularity / popularity.sum())
    below /= below[-1]
    return _ranks(rng.random(n), below), system.tokens.sample(system.count, rng)


@compiled
def _ranks(drawn: Floats, below: Floats) -> Ints:
    """Return the rank each uniform draw falls on: few and mostly low, a walk beats a search."""
    ranks = np.empty(drawn.size, np.int64)
    for k in range(drawn.size):
        rank = 0
        while below[rank] <= drawn[k]:
            rank += 1
        ranks[k] = rank
    return ranks


def _running_sum(values: NDArray[Number], restart: NDArray[np.bool_]) -> NDArray[Number]:
    """Cumulative sum that begins anew wherever `restart` is set (the first element included)."""
    total = np.cumsum(values)
    before = (total - values)[restart]
    segment = np.cumsum(restart) - 1
    result: NDArray[Number] = total - before[segment]
    return result
