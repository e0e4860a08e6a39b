"""Generated traffic has the rates, lengths and prefixes it was asked for, and the seed decides."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hrl_planner.errors import TraceError
from hrl_planner.workload import Trace, curves
from hrl_planner.workload._rows import grow_tree
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.generators import independent_requests, sessions
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.prefixes import AGENTIC, ASSISTANT, CONVERSATION, SessionModel
from hrl_planner.workload.statistics import describe, prefix_reuse

SHAPES = {
    "constant": curves.constant(8.0, 900.0),
    "steps": curves.steps([2.0, 10.0, 0.0], 900.0),
    "ramp": curves.ramp(1.0, 12.0, 900.0, start_s=300.0, ramp_s=130.0),
    "sinusoid": curves.sinusoid(1.0, 24.0, 900.0),
    "diurnal": curves.diurnal(15.0, 900.0, day_s=900.0),
    "bursts": curves.bursts(3.0, 20.0, 900.0, seed=5),
}


def same(a: Trace, b: Trace) -> bool:
    columns = ("arrival_s", "isl_tokens", "osl_tokens", "block_ids", "session_id")
    return all(np.array_equal(getattr(a, c), getattr(b, c)) for c in columns)


@pytest.mark.parametrize("name", SHAPES)
def test_arrivals_follow_the_curve(name: str) -> None:
    curve = SHAPES[name]
    times = np.concatenate([curve.arrivals(np.random.default_rng(s))[0] for s in range(40)])
    edges = np.linspace(0, 900, 10)
    cumulative = np.interp(
        edges,
        curve.edges_s,
        np.concatenate(([0.0], np.cumsum(curve.rate_rps * np.diff(curve.edges_s)))),
    )
    expected = 40 * np.diff(cumulative)
    found = np.histogram(times, edges)[0]
    # Poisson counts: five standard deviations.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


def test_poisson_arrivals_are_as_regular_as_poisson_and_bursts_are_not() -> None:
    plain = independent_requests(curves.constant(20.0, 2000.0), seed=0)
    bursty = independent_requests(curves.bursts(10.0, 60.0, 2000.0, seed=1), seed=0)
    assert describe(plain).dispersion == pytest.approx(1.0, abs=0.6)
    assert describe(bursty).dispersion > 20
    gaps = np.diff(plain.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)


def test_the_seed_decides_everything() -> None:
    for make in (
        lambda seed: independent_requests(SHAPES["diurnal"], seed=seed),
        lambda seed: sessions(SHAPES["constant"], ASSISTANT, seed=seed),
    ):
        assert same(make(3), make(3))
        assert not same(make(3), make(4))


def test_lengths_have_the_mean_and_spread_asked_for() -> None:
    rng = np.random.default_rng(0)
    drawn = Lengths(mean=1000, cv=1.3, high=1_000_000).sample(400_000, rng)
    assert drawn.mean() == pytest.approx(1000, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(1.3, rel=0.08)
    exponential = Lengths(mean=300, distribution="exponential").sample(100_000, rng)
    assert exponential.std() / exponential.mean() == pytest.approx(1.0, rel=0.03)
    assert set(Lengths(mean=7, distribution="constant").sample(5, rng)) == {7}
    bounded = Lengths(mean=100, cv=2.0, low=50, high=200).sample(1000, rng)
    assert bounded.min() == 50 and bounded.max() == 200


def test_drift_moves_mean_lengths_between_two_times() -> None:
    curve = curves.drift(
        curves.constant(50.0, 1000.0), isl=(4000, 500), osl=(100, 800), start_s=200, end_s=800
    )
    trace = independent_requests(curve, seed=0)
    early, late = trace.arrival_s < 200, trace.arrival_s > 800
    assert trace.isl_tokens[early].mean() == pytest.approx(4000, rel=0.05)
    assert trace.isl_tokens[late].mean() == pytest.approx(500, rel=0.05)
    assert trace.osl_tokens[late].mean() == pytest.approx(800, rel=0.05)


def test_a_million_requests_take_about_a_second() -> None:
    trace = independent_requests(curves.constant(1000.0, 1000.0), seed=0)
    assert len(trace) == pytest.approx(1_000_000, rel=0.01)


def test_turns_share_the_prompt_of_the_turn_before() -> None:
    model = replace(AGENTIC, edit_probability=0.0, system=None)
    trace = sessions(curves.constant(2.0, 600.0), model, seed=0)
    last: dict[int, list[int]] = {}
    repeats = 0
    for r in range(len(trace)):
        ids = trace.block_ids[trace.block_offsets[r] : trace.block_offsets[r + 1]].tolist()
        session = int(trace.session_id[r])
        if session in last:
            full = last[session][1] // trace.block_tokens
            assert ids[:full] == last[session][0][:full]
            repeats += 1
        last[session] = (ids, int(trace.isl_tokens[r]))
    assert repeats > 500
    # Without system prompts nothing is shared between conversations.
    owner: dict[int, int] = {}
    for r in range(len(trace)):
        for block in trace.block_ids[trace.block_offsets[r] : trace.block_offsets[r + 1]].tolist():
            assert owner.setdefault(block, int(trace.session_id[r])) == trace.session_id[r]


def test_system_prompts_are_shared_between_conversations() -> None:
    single = replace(AGENTIC, turns_scale=0.0)
    with_prompts = sessions(curves.constant(5.0, 600.0), single, seed=0)
    without = sessions(curves.constant(5.0, 600.0), replace(single, system=None), seed=0)
    assert prefix_reuse(with_prompts) > 0.6
    assert prefix_reuse(without) < 0.01


@pytest.mark.parametrize("model", [CONVERSATION, AGENTIC, ASSISTANT])
def test_sessions_arrive_at_the_rate_of_the_curve_from_the_first_minute(
    model: SessionModel,
) -> None:
    trace = sessions(curves.constant(20.0, 1200.0), model, seed=2)
    counts = np.histogram(trace.arrival_s, bins=3, range=(0, 1200))[0] / 400
    assert counts == pytest.approx(20.0, rel=0.15)
    assert trace.isl_tokens.max() <= model.max_isl


def test_block_tree_repeats_leading_blocks_and_makes_the_rest_new() -> None:
    ids, offsets = grow_tree(
        parent=np.array([-1, 0, 1, 0]),
        shared=np.array([0, 2, 9, 1]),
        count=np.array([2, 4, 3, 3]),
    )
    rows = [ids[a:b].tolist() for a, b in pairwise(offsets)]
    assert rows[1][:2] == rows[0]
    assert rows[2] == rows[1][:3]
    assert rows[3][0] == rows[0][0] and not set(rows[3][1:]) & {*rows[0], *rows[1]}
    assert sorted(set(ids.tolist())) == list(range(6))


def test_curves_cut_and_scale_like_traces() -> None:
    curve = SHAPES["steps"]
    part = curve.slice(250.0, 650.0)
    assert part.duration_s == 400.0
    assert part.expected_requests == pytest.approx(50 * 2 + 300 * 10)
    assert curve.scale(rate=2.0, time=0.5).expected_requests == curve.expected_requests
    ridden = curves.product(curve, curves.constant(0.5, 900.0))
    assert ridden.expected_requests == pytest.approx(curve.expected_requests / 2)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (([0, 1], [np.nan], [9], [9]), "rate_rps: holds a value that is not finite"),
        (([0, 1], [-1], [9], [9]), "rate_rps: value -1"),
        (([1, 2], [1], [9], [9]), "edges_s: must increase strictly from 0"),
        (([0, 1], [1], [0], [9]), "mean_isl: value 0"),
        (([0, 1, 2], [1], [9], [9]), "3 edges for 1 intervals"),
        (([0, 1], [1], [9, 9], [9]), "mean_isl: 2 values"),
    ],
)
def test_curves_that_cannot_be_are_refused(columns: tuple[list[float], ...], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        RateCurve("c", *(np.array(c, dtype=np.float64) for c in columns))


@pytest.mark.parametrize("bad", [{"mean": 0}, {"mean": 5, "cv": -1}, {"mean": 5, "low": 0}])
def test_lengths_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(TraceError, match="lengths field"):
        Lengths(**bad)  # type: ignore[arg-type]
