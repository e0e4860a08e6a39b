"""Traces refuse what cannot be, and keep their meaning when cut, scaled, joined and divided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.errors import ScenarioError, TraceError
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import (
    ClusterEvent,
    Trace,
    assign_classes,
    concat,
    merge,
    split_by_day,
)
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests, sessions
from hrl_planner.workload.prefixes import AGENTIC
from hrl_planner.workload.trace import dense_ids, ragged_arange


def small_trace(**changes: object) -> Trace:
    columns: dict[str, object] = {
        "name": "t",
        "arrival_s": np.array([0.0, 1.0, 1.0, 4.0]),
        "isl_tokens": np.array([600, 1200, 100, 600]),
        "osl_tokens": np.array([3, 4, 5, 6]),
        "duration_s": 10.0,
        "block_ids": np.array([0, 1, 0, 2, 3, 0, 1]),
        "block_offsets": np.array([0, 2, 5, 5, 7]),
    }
    return Trace(**{**columns, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arrival_s": np.array([0.0, np.nan, 1, 2])}, "request 1 field arrival_s: value nan"),
        ({"arrival_s": np.array([-1.0, 0, 1, 2])}, "request 0 field arrival_s: value -1 is neg"),
        ({"arrival_s": np.array([0.0, 2, 1, 2])}, "request 2 field arrival_s: value 1 is before"),
        ({"isl_tokens": np.array([1, 0, 1, 1])}, "request 1 field isl_tokens: value 0 is below"),
        ({"osl_tokens": np.array([1, 1, 1, 2**40])}, "request 3 field osl_tokens"),
        ({"osl_tokens": np.array([1.0, 1.5, 1, 1])}, "value 1.5 is not a whole number"),
        ({"osl_tokens": np.array([1, 1, 1])}, "columns differ in length"),
        ({"duration_s": 3.0}, "field duration_s"),
        ({"duration_s": float("nan")}, "field duration_s"),
        ({"block_ids": np.array([0, 1, 0, 2, 9, 0, 1])}, "ids must be dense, 3 is never used"),
        ({"block_offsets": np.array([0, 3, 5, 5, 7])}, "request 0 field block_ids: 3 blocks"),
        ({"block_offsets": np.array([0, 2, 5])}, "field block_offsets"),
        ({"label": np.array([0, 0, 2, 0]), "labels": ("a", "b")}, "request 2 field label"),
        ({"labels": ("a", "a")}, "names repeat"),
        ({"session_id": np.array([1])}, "field session_id: 1 values"),
        ({"block_tokens": 0}, "field block_tokens"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_with_request_field_and_value(
    changes: dict[str, object], says: str
) -> None:
    with pytest.raises(TraceError, match=says):
        small_trace(**changes)


def test_columns_have_the_types_the_kernel_expects() -> None:
    trace = small_trace()
    assert trace.isl_tokens.dtype == np.int32
    assert trace.arrival_s.dtype == np.float64
    assert trace.block_offsets.dtype == np.int64
    assert trace.label.tolist() == [-1] * 4
    assert trace.session_id.tolist() == [-1] * 4
    assert trace.n_blocks == 4
    assert len(Trace("empty", np.zeros(0), np.zeros(0), np.zeros(0), 5.0)) == 0


def test_a_slice_counts_time_from_its_start_and_renumbers_blocks() -> None:
    part = small_trace().slice(1.0, 4.0)
    assert part.arrival_s.tolist() == [0.0, 0.0]
    assert part.duration_s == 3.0
    assert part.block_ids.tolist() == [0, 1, 2]
    assert part.block_offsets.tolist() == [0, 3, 3]
    with pytest.raises(TraceError, match="slice"):
        part.slice(2.0, 2.0)


def test_stretching_time_keeps_requests_and_changes_the_rate() -> None:
    trace = small_trace().scale(time=2.0)
    assert trace.arrival_s.tolist() == [0.0, 2.0, 2.0, 8.0]
    assert trace.duration_s == 20.0


@given(rate=st.floats(0.2, 4.0), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_scaling_the_rate_multiplies_requests_and_stays_a_trace(rate: float, seed: int) -> None:
    trace = independent_requests(constant(5.0, 400.0), seed=1)
    scaled = trace.scale(rate=rate, seed=seed)
    spread = 5 * np.sqrt(len(trace)) + 1
    assert abs(len(scaled) - rate * len(trace)) < spread
    assert scaled.duration_s == trace.duration_s
    assert scaled.scale(rate=1.0) is scaled


def test_scaling_up_copies_conversations_whole_with_blocks_of_their_own() -> None:
    trace = sessions(constant(1.0, 600.0), AGENTIC, seed=3)
    double = trace.scale(rate=2.0, seed=1)
    assert len(double) == 2 * len(trace)
    assert len(np.unique(double.session_id)) == 2 * len(np.unique(trace.session_id))
    # System prompts stay common; what a conversation added exists twice.
    assert 1.2 * trace.n_blocks < double.n_blocks < 2.0 * trace.n_blocks
    half = trace.scale(rate=0.5, seed=1)
    kept = np.bincount(half.session_id)
    whole = np.bincount(trace.session_id)
    assert set(kept[kept > 0]) <= set(whole)


@pytest.mark.parametrize("factors", [{"rate": 0.0}, {"time": -1.0}, {"rate": float("nan")}])
def test_scale_factors_must_be_positive(factors: dict[str, float]) -> None:
    with pytest.raises(TraceError, match="must be > 0"):
        small_trace().scale(**factors)


def test_merging_keeps_labels_together_and_prefixes_apart() -> None:
    a = small_trace().with_labels("chat")
    b = small_trace(session_id=np.array([0, 0, 1, 1])).with_labels(["code", "chat", "code", "chat"])
    both = merge([a, b])
    assert len(both) == 8
    assert both.n_blocks == 8
    assert set(both.labels) == {"chat", "code"}
    assert sum(both.label == both.labels.index("code")) == 2
    assert sorted(both.session_id.tolist()) == [-1, -1, -1, -1, 0, 0, 1, 1]
    assert both.duration_s == 10.0


def test_concatenating_plays_one_after_another() -> None:
    both = concat([small_trace(), small_trace()])
    assert both.arrival_s.tolist() == [0, 1, 1, 4, 10, 11, 11, 14]
    assert both.duration_s == 20.0
    with pytest.raises(TraceError, match="block_tokens differs"):
        concat(
            [
                small_trace(),
                small_trace(block_tokens=1024, block_offsets=[0, 1, 2, 2, 3], block_ids=[0, 1, 0]),
            ]
        )


def test_splits_share_no_day() -> None:
    trace = independent_requests(constant(2.0, 1000.0), seed=0)
    parts = split_by_day(trace, day_s=100.0)
    assert [p.duration_s for p in parts] == [600.0, 200.0, 200.0]
    assert sum(len(p) for p in parts) == len(trace)
    assert parts.train.name.endswith("train")
    with pytest.raises(TraceError, match="hold 1 days"):
        split_by_day(trace)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ragged_arange_is_the_concatenation_of_ranges(counts: list[int]) -> None:
    starts = np.arange(len(counts)) * 7
    expected = [s + i for s, c in zip(starts, counts, strict=True) for i in range(c)]
    assert ragged_arange(starts, np.array(counts)).tolist() == expected


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30))
def test_dense_ids_keep_equality_and_order(ids: list[int]) -> None:
    expected = [sorted(set(ids)).index(i) for i in ids]
    assert dense_ids(np.array(ids)).tolist() == expected
    assert dense_ids(np.array(expected)).tolist() == expected


class TestClassAssignment:
    """Labels first, then lengths, then shares."""

    spec = ClusterSpec.load("reference")

    def trace(self, n: int = 4000) -> Trace:
        return Trace("t", np.arange(n) * 1.0, np.full(n, 100), np.full(n, 10), float(n))

    def test_a_label_wins(self) -> None:
        ids = assign_classes(self.trace().with_labels("batch"), self.spec, seed=0)
        assert (ids == self.spec.class_index("batch")).all()

    def test_length_decides_where_no_label_does(self) -> None:
        long = replace(self.trace(), isl_tokens=np.full(4000, 9000))
        ids = assign_classes(long.with_labels("who knows"), self.spec, seed=0)
        assert (ids == self.spec.class_index("agentic")).all()

    def test_the_rest_is_shared_out_by_a_seeded_draw(self) -> None:
        ids = assign_classes(self.trace(), self.spec, seed=0)
        assert abs((ids == self.spec.class_index("interactive")).mean() - 0.75) < 0.03
        assert (ids == assign_classes(self.trace(), self.spec, seed=0)).all()
        assert (ids != assign_classes(self.trace(), self.spec, seed=1)).any()

    def test_a_request_that_nobody_takes_is_an_error(self) -> None:
        only = tuple(
            c.model_copy(update={"assign": c.assign.model_copy(update={"share": None})})
            for c in self.spec.slo_classes
        )
        with pytest.raises(TraceError, match=r"request 0 .*fits no class of spec reference"):
            assign_classes(self.trace(), self.spec.replace(slo_classes=only), seed=0)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"kind": "meteor"}, "unknown value 'meteor'"),
        ({"kind": "inventory"}, "field gpu_type"),
        ({"kind": "kill_worker"}, "field pool"),
        ({"kind": "metrics_outage", "value": float("nan")}, "field value"),
        ({"kind": "metrics_outage", "t_s": -1.0}, "field t_s"),
        ({"kind": "blind_profile", "pool": "x", "value": 0.0}, "t_s 0.0, value 0.0"),
        ({"kind": "blind_profile", "pool": "x", "t_s": 9.0}, "t_s 9.0, value 1.0"),
    ],
)
def test_events_that_no_cluster_could_carry_out_are_refused(
    event: dict[str, object], says: str
) -> None:
    with pytest.raises(ScenarioError, match=says):
        ClusterEvent(**{"t_s": 0.0, **event})  # type: ignore[arg-type]
