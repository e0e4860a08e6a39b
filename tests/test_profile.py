"""Latency surfaces: exact on the grid, monotone where the data are, at the edge beyond it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.errors import ProfileError
from hrl_planner.profile import ProfileRangeWarning, WorkerProfile, shipped_profiles


def make_profile(prefill_ms: Any = None, decode_ms: Any = None, **changes: Any) -> WorkerProfile:
    """Return a profile of 2 x 3 x 2 prefill and 3 x 2 decode points with round numbers."""
    fields: dict[str, Any] = {
        "name": "toy",
        "model": "toy",
        "system": "toy",
        "tp": 2,
        "backend": "none",
        "prefill_batch": np.array([1.0, 4.0]),
        "prefill_new_tokens": np.array([100.0, 200.0, 800.0]),
        "prefill_prefix_tokens": np.array([0.0, 1000.0]),
        "prefill_ms": np.arange(1.0, 13.0).reshape(2, 3, 2) if prefill_ms is None else prefill_ms,
        "decode_batch": np.array([1.0, 8.0, 16.0]),
        "decode_context_tokens": np.array([100.0, 1100.0]),
        "decode_ms": np.arange(1.0, 7.0).reshape(3, 2) if decode_ms is None else decode_ms,
        "kv_capacity_tokens": 10_000,
        "kv_bytes_per_token": 64,
        "tdp_w_per_gpu": 100.0,
        "source": "made up",
    }
    return WorkerProfile(**{**fields, **changes})


increasing = st.lists(st.floats(0.001, 10.0), min_size=24, max_size=24)


def monotone(steps: list[float], *shape: int) -> np.ndarray:
    """Return a surface that grows along every axis."""
    table = np.array(steps[: int(np.prod(shape))]).reshape(shape)
    for axis in range(len(shape)):
        table = np.cumsum(table, axis=axis)
    return table


@pytest.mark.parametrize("name", shipped_profiles())
def test_interpolation_is_exact_on_every_grid_point(name: str) -> None:
    profile = WorkerProfile.load(name)
    for i, batch in enumerate(profile.prefill_batch):
        for j, new in enumerate(profile.prefill_new_tokens):
            for k, prefix in enumerate(profile.prefill_prefix_tokens):
                got = profile.prefill_step_ms(batch, batch * new, prefix)
                assert got == pytest.approx(profile.prefill_ms[i, j, k], rel=1e-12)
    for i, batch in enumerate(profile.decode_batch):
        for j, context in enumerate(profile.decode_context_tokens):
            got = profile.decode_step_ms(batch, context)
            assert got == pytest.approx(profile.decode_ms[i, j], rel=1e-12)


def test_between_points_time_is_linear() -> None:
    profile = make_profile()
    # Midway between 1 and 3 in new tokens, at the ends of the other axes.
    assert profile.prefill_step_ms(1, 150, 0) == pytest.approx(2.0)
    assert profile.prefill_step_ms(1, 100, 500) == pytest.approx(1.5)
    assert profile.decode_step_ms(1, 600) == pytest.approx(1.5)
    assert profile.decode_step_ms(4.5, 100) == pytest.approx(2.0)


@given(
    steps=increasing,
    batch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    new=st.tuples(st.floats(100, 800), st.floats(100, 800)),
    prefix=st.tuples(st.floats(0, 1000), st.floats(0, 1000)),
)
def test_prefill_grows_where_the_data_do(
    steps: list[float], batch: Any, new: Any, prefix: Any
) -> None:
    profile = make_profile(prefill_ms=monotone(steps, 2, 3, 2))
    (b0, b1), (n0, n1), (p0, p1) = sorted(batch), sorted(new), sorted(prefix)
    low = profile.prefill_step_ms(b0, b0 * n0, p0)
    high = profile.prefill_step_ms(b1, b1 * n1, p1)
    assert low <= high * (1 + 1e-12)


@given(
    steps=increasing,
    batch=st.tuples(st.floats(1, 16), st.floats(1, 16)),
    context=st.tuples(st.floats(100, 1100), st.floats(100, 1100)),
)
def test_decode_grows_where_the_data_do(steps: list[float], batch: Any, context: Any) -> None:
    profile = make_profile(decode_ms=monotone(steps, 3, 2))
    (b0, b1), (c0, c1) = sorted(batch), sorted(context)
    assert profile.decode_step_ms(b0, c0) <= profile.decode_step_ms(b1, c1) * (1 + 1e-12)


@settings(max_examples=50)
@given(batch=st.floats(1, 16), context=st.floats(100, 1100), steps=increasing)
def test_interpolation_stays_between_its_neighbours(
    batch: float, context: float, steps: list[float]
) -> None:
    table = np.array(steps[:6]).reshape(3, 2)
    got = make_profile(decode_ms=table).decode_step_ms(batch, context)
    assert table.min() * (1 - 1e-12) <= got <= table.max() * (1 + 1e-12)


@pytest.mark.parametrize(
    ("batch", "total", "prefix", "edge", "axis"),
    [
        (1, 50, 0, (1, 100, 0), "prefill_new_tokens"),
        (1, 100, 5000, (1, 100, 1000), "prefill_prefix_tokens"),
        (1, 100, -5, (1, 100, 0), "prefill_prefix_tokens"),
    ],
)
def test_prefill_outside_the_grid_uses_the_edge_and_warns(
    batch: float, total: float, prefix: float, edge: Any, axis: str
) -> None:
    profile = make_profile()
    with pytest.warns(ProfileRangeWarning, match=axis):
        outside = profile.prefill_step_ms(batch, total, prefix)
    assert outside == profile.prefill_step_ms(*edge)


def test_longer_prompts_than_measured_grow_in_proportion_and_warn() -> None:
    profile = make_profile()
    with pytest.warns(ProfileRangeWarning, match="prefill_new_tokens 1600 is outside"):
        assert profile.prefill_step_ms(1, 1600) == pytest.approx(
            2 * profile.prefill_step_ms(1, 800)
        )


def test_more_requests_than_measured_count_as_fewer_longer_ones() -> None:
    profile = make_profile()
    assert profile.prefill_step_ms(8, 800) == profile.prefill_step_ms(4, 800)


@pytest.mark.parametrize(
    ("batch", "context", "edge", "axis"),
    [
        (1, 5, (1, 100), "decode_context_tokens"),
        (1, 5000, (1, 1100), "decode_context_tokens"),
        (100, 100, (16, 100), "decode_batch"),
    ],
)
def test_decode_outside_the_grid_uses_the_edge_and_warns(
    batch: float, context: float, edge: Any, axis: str
) -> None:
    profile = make_profile()
    with pytest.warns(ProfileRangeWarning, match=axis):
        outside = profile.decode_step_ms(batch, context)
    assert outside == profile.decode_step_ms(*edge)


def test_inside_the_grid_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_profile().prefill_step_ms(2, 1600, 1000)
        make_profile().decode_step_ms(16, 1100)


def test_a_saved_profile_comes_back_the_same(tmp_path: Path) -> None:
    profile = make_profile(name="copy")
    profile.save(tmp_path / "copy.npz")
    back = WorkerProfile.load(tmp_path / "copy.npz")
    assert repr(back) == repr(profile)
    assert np.array_equal(back.prefill_ms, profile.prefill_ms)
    assert np.array_equal(back.decode_ms, profile.decode_ms)


def test_a_profile_written_again_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    make_profile(kv_capacity_tokens=1).save(path)
    assert WorkerProfile.load(path).kv_capacity_tokens == 1
    make_profile(kv_capacity_tokens=20_000).save(path)
    assert WorkerProfile.load(path).kv_capacity_tokens == 20_000


def test_arrays_cannot_be_changed_by_accident() -> None:
    profile = make_profile()
    with pytest.raises(ValueError, match="read-only"):
        profile.decode_ms[0, 0] = 0.0


def test_weights_that_do_not_fit_leave_no_cache() -> None:
    assert not WorkerProfile.load("qwen3_32b__l40s__tp1__vllm").fits
    assert WorkerProfile.load("qwen3_32b__l40s__tp2__vllm").fits


def test_sharding_does_not_change_what_a_transfer_moves() -> None:
    tp1 = WorkerProfile.load("qwen3_32b__h200_sxm__tp1__vllm")
    tp4 = WorkerProfile.load("qwen3_32b__h200_sxm__tp4__vllm")
    assert tp1.model_kv_bytes_per_token == tp4.model_kv_bytes_per_token


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_say_where_they_come_from(name: str) -> None:
    assert "Apache-2.0" in WorkerProfile.load(name).source


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decode_ms", np.zeros((3, 2)), "every step must take time"),
        ("decode_ms", np.full((3, 2), np.nan), "not finite"),
        ("decode_ms", np.ones((2, 3)), r"shape \(2, 3\), its axes say \(3, 2\)"),
        ("decode_batch", np.array([1.0, 1.0, 2.0]), "strictly increasing"),
        ("prefill_new_tokens", np.array([800.0, 200.0, 100.0]), "strictly increasing"),
        ("prefill_prefix_tokens", np.array([-1.0, 5.0]), "not below 0"),
        ("prefill_batch", np.array([]), "empty"),
        ("tp", 0, "tp 0"),
        ("kv_capacity_tokens", -1, "kv_capacity_tokens -1"),
    ],
)
def test_impossible_surfaces_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        replace(make_profile(), **{field: value})


def test_unknown_names_are_told_apart_from_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"did you mean .*qwen3_32b__h200_sxm__tp2__vllm"):
        WorkerProfile.load("qwen3_32b__h200__tp2")
    with pytest.raises(ProfileError, match="no such file"):
        WorkerProfile.load(tmp_path / "missing.npz")


def test_broken_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    with pytest.raises(ProfileError, match=r"text.npz: not a readable .npz"):
        WorkerProfile.load(text)
    partial = tmp_path / "partial.npz"
    np.savez(partial, prefill_ms=np.ones(1))
    with pytest.raises(ProfileError, match="arrays missing: decode_batch"):
        WorkerProfile.load(partial)
    make_profile().save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for meta in ("{}", "not json", json.dumps({"model": "m", "system": "s", "tp": "two"})):
        bad = tmp_path / "meta.npz"
        np.savez(bad, **{**arrays, "meta": np.array(meta)})
        with pytest.raises(ProfileError, match=r"meta.npz: bad meta"):
            WorkerProfile.load(bad)
