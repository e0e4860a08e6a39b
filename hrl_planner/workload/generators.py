"""Traces out of nothing but a rate curve, a few figures and a seed.

Two kinds: `independent_requests` (lengths from the curve, no prefixes) and `sessions`
(conversations with system prompts and growing prefixes). Which load over time is the curve's
business, what the requests are like the generator's; any curve goes with any generator, and
`merge` plays several kinds of traffic at once.

The same seed gives the same trace on every machine with the same numpy.
"""

from __future__ import annotations

import numpy as np

from hrl_planner.workload._rows import gather
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.prefixes import SessionModel, converse
from hrl_planner.workload.trace import DEFAULT_BLOCK_TOKENS, Trace, dense_ids

HEAVY_ISL = Lengths(mean=1024, cv=1.3, high=131_072)
"""Prompts: only the spread and bounds are used, the mean comes from the curve."""

HEAVY_OSL = Lengths(mean=256, cv=0.8, high=16_384)
"""Outputs, likewise."""


def independent_requests(
    curve: RateCurve,
    *,
    seed: int,
    isl: Lengths = HEAVY_ISL,
    osl: Lengths = HEAVY_OSL,
    label: str | None = None,
    name: str | None = None,
) -> Trace:
    """A non-homogeneous Poisson process with independent lengths around the curve's means."""
    rng = np.random.default_rng(seed)
    arrival_s, interval = curve.arrivals(rng)
    n = len(arrival_s)
    trace = Trace(
        name=name or curve.name,
        arrival_s=arrival_s,
        isl_tokens=isl.sample(n, rng, curve.mean_isl[interval]).astype(np.int32),
        osl_tokens=osl.sample(n, rng, curve.mean_osl[interval]).astype(np.int32),
        duration_s=curve.duration_s,
    )
    return trace if label is None else trace.with_labels(label)


def sessions(
    curve: RateCurve,
    model: SessionModel,
    *,
    seed: int,
    label: str | None = None,
    name: str | None = None,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
) -> Trace:
    """Conversations whose requests arrive, all turns together, at the curve's rate on average.

    The curve decides when conversations begin; a change of rate therefore reaches later turns with
    their delay, as it does in a service. Lengths come from the model; where the curve's mean prompt
    moves, they move by the same factor. Conversations also begin before time 0, so that the first
    minute looks like any other.
    """
    rng = np.random.default_rng(seed)
    warm_s = model.warm_up_s
    starts = RateCurve(
        curve.name,
        np.concatenate(([0.0], curve.edges_s + warm_s)),
        np.concatenate((curve.rate_rps[:1], curve.rate_rps)) / model.mean_turns,
        np.concatenate((curve.mean_isl[:1], curve.mean_isl)),
        np.concatenate((curve.mean_osl[:1], curve.mean_osl)),
    )
    start_s, interval = starts.arrivals(rng)
    factor = starts.mean_isl[interval] / starts.mean_isl[0]
    turns = converse(model, start_s - warm_s, factor, rng, block_tokens)

    inside = np.flatnonzero((turns.at_s >= 0) & (turns.at_s < curve.duration_s))
    index = inside[np.argsort(turns.at_s[inside], kind="stable")]
    counts = np.diff(turns.block_offsets)[index]
    blocks = gather(turns.block_ids, turns.block_offsets[:-1][index], counts)
    trace = Trace(
        name=name or curve.name,
        arrival_s=turns.at_s[index],
        isl_tokens=turns.isl[index].astype(np.int32),
        osl_tokens=turns.osl[index].astype(np.int32),
        duration_s=curve.duration_s,
        session_id=dense_ids(turns.session[index]),
        block_ids=dense_ids(blocks),
        block_offsets=np.concatenate(([0], np.cumsum(counts))),
        block_tokens=block_tokens,
    )
    return trace if label is None else trace.with_labels(label)
