"""Profiles from elsewhere: Dynamo's profiler and AISimulate's database."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrl_planner.errors import ProfileError
from hrl_planner.profile import WorkerProfile
from hrl_planner.profile_build import build_profile
from hrl_planner.profile_import import import_dynamo

CAPACITY = 40_000


def ttft(tokens: Any) -> Any:
    """A made worker: 10 ms a step and 0.1 ms a token."""
    return 10.0 + 0.1 * np.asarray(tokens, float)


def itl(batch: Any, context: Any) -> Any:
    return 8.0 + 0.2 * np.asarray(batch, float) + 1e-4 * np.asarray(batch) * np.asarray(context)


def raw_data() -> tuple[dict[str, Any], dict[str, Any]]:
    """The two tables as Dynamo's profiler sweeps them: lengths from 100, batches up to capacity."""
    isl = np.array([100, 1100, 2100, 4100, 8100])
    context, batch = [], []
    for length in (350, 2350, 6350):
        for n in np.unique(np.linspace(1, CAPACITY // (length + 250), 4).astype(int)):
            context.append(float(length))
            batch.append(int(n))
    usage = np.array(context) * np.array(batch) / CAPACITY
    prefill = {
        "prefill_isl": isl,
        "prefill_ttft": ttft(isl),
        "prefill_thpt_per_gpu": isl / ttft(isl) * 1000,
    }
    decode = {
        "x_kv_usage": usage,
        "y_context_length": np.array(context),
        "z_itl": itl(batch, context),
        "z_thpt_per_gpu": np.ones(len(batch)),
        "max_kv_tokens": np.array([CAPACITY]),
    }
    return prefill, decode


def write_npz(folder: Path, prefill: dict[str, Any], decode: dict[str, Any]) -> Path:
    for kind, arrays in (("prefill", prefill), ("decode", decode)):
        place = folder / f"selected_{kind}_interpolation"
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / "raw_data.npz", **arrays)
    return folder


def write_json(folder: Path, prefill: dict[str, Any], decode: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, arrays in (("prefill", prefill), ("decode", decode)):
        data = {key: np.asarray(value).tolist() for key, value in arrays.items()}
        if kind == "decode":
            data["max_kv_tokens"] = int(np.asarray(data["max_kv_tokens"]).ravel()[0])
        (folder / f"{kind}_raw_data.json").write_text(json.dumps(data))
    return folder


def read(folder: Path) -> WorkerProfile:
    return import_dynamo(folder, name="imported", model="m", tp=2, kv_bytes_per_token=100)


def test_measured_points_survive_the_import(tmp_path: Path) -> None:
    prefill, decode = raw_data()
    profile = read(write_npz(tmp_path, prefill, decode))
    for tokens, ms in zip(prefill["prefill_isl"], prefill["prefill_ttft"], strict=True):
        assert profile.prefill_step_ms(1, tokens) == pytest.approx(ms)
    batches = np.round(decode["x_kv_usage"] * CAPACITY / decode["y_context_length"])
    points = zip(batches, decode["y_context_length"], decode["z_itl"], strict=True)
    for batch, context, ms in points:
        assert profile.decode_step_ms(batch, context) == pytest.approx(ms)
    assert profile.kv_capacity_tokens == CAPACITY
    assert profile.model_kv_bytes_per_token == 200


def test_json_twin_reads_the_same(tmp_path: Path) -> None:
    raw = raw_data()
    one, two = read(write_npz(tmp_path / "a", *raw)), read(write_json(tmp_path / "b", *raw))
    assert np.array_equal(one.prefill_ms, two.prefill_ms)
    assert np.array_equal(one.decode_ms, two.decode_ms)


def test_batches_and_prefixes_follow_the_stated_assumptions(tmp_path: Path) -> None:
    """With T(n) = 10 + n / 10, both bounds on a batch have closed forms."""
    profile = read(write_npz(tmp_path, *raw_data()))
    # Behind a prefix: the new tokens' own share and the cost of a step, as T is linear.
    assert profile.prefill_step_ms(1, 1100, 1024) == pytest.approx(ttft(1100))
    # Four prompts: one step over all tokens is cheaper than four steps.
    assert profile.prefill_step_ms(4, 4 * 1100, 0) == pytest.approx(ttft(4400))
    assert "assumed" in profile.source


def test_surfaces_grow_with_batch_tokens_and_context(tmp_path: Path) -> None:
    profile = read(write_npz(tmp_path, *raw_data()))
    for axis in range(3):
        assert np.all(np.diff(profile.prefill_ms, axis=axis) >= -1e-9)
    for axis in range(2):
        assert np.all(np.diff(profile.decode_ms, axis=axis) >= -1e-9)


def test_an_imported_profile_can_be_saved_and_loaded(tmp_path: Path) -> None:
    profile = read(write_npz(tmp_path / "raw", *raw_data()))
    profile.save(tmp_path / "imported.npz")
    assert repr(WorkerProfile.load(tmp_path / "imported.npz")) == repr(profile)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("prefill", "prefill_ttft", None, "prefill_ttft is missing"),
        ("prefill", "prefill_ttft", np.ones(2), "arrays differ in length: prefill_isl 5"),
        ("prefill", "prefill_isl", np.full(5, 100), "has 1 different values, needs 2"),
        ("prefill", "prefill_ttft", np.full(5, np.nan), "positive, finite"),
        ("decode", "z_itl", np.array([]), "positive, finite"),
        ("decode", "max_kv_tokens", np.array([0]), "max_kv_tokens"),
        ("decode", "max_kv_tokens", np.array([0.5]), "max_kv_tokens is 0.5"),
        ("decode", "x_kv_usage", np.array(["a"]), "not readable as profiler data"),
    ],
)
def test_bad_raw_data_names_file_and_array(
    tmp_path: Path, kind: str, field: str, value: Any, message: str
) -> None:
    prefill, decode = raw_data()
    table = prefill if kind == "prefill" else decode
    if value is None:
        del table[field]
    else:
        table[field] = value
    with pytest.raises(ProfileError, match=message) as caught:
        read(write_npz(tmp_path, prefill, decode))
    assert f"selected_{kind}_interpolation" in str(caught.value)


def test_a_directory_without_results_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="found neither selected_prefill_interpolation"):
        read(tmp_path)
    with pytest.raises(ProfileError, match="not a directory"):
        read(tmp_path / "nowhere")
    (tmp_path / "prefill_raw_data.json").write_text("{")
    with pytest.raises(ProfileError, match=r"prefill_raw_data.json: not readable"):
        read(tmp_path)


FAKE_SDK = """
class EngineHandle:
    @staticmethod
    def compile(model, system, backend, backend_version, tp_size, moe_tp_size=1, moe_ep_size=1):
        if model == "unknown":
            raise KeyError(model)
        return EngineHandle()

    def predict_prefill_latency(self, batch, isl, prefix):
        return 5 + batch * (isl - prefix) / 100 + prefix / 10000

    def predict_decode_latency(self, batch, context, osl):
        return 5 + batch * context / 10000


def estimate_kv_cache(model, system, backend, version, *, tp_size, **options):
    if system == "tiny":
        raise ValueError("no KV budget: non-KV memory exceeds the limit")
    return {"total_kv_size_tokens": 1000 * tp_size, "kv_size_per_token_bytes": 64 // tp_size}
"""
FAKE_DATABASE = """
def get_latest_database_version(system, backend):
    return None if system == "nowhere" else "1.2.3"


def load_system_spec(system):
    return {"gpu": {"power": 300}}
"""


@pytest.fixture
def fake_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for the part of the SDK that is used in front of the real one."""
    package = tmp_path / "aisimulate_core"
    (package / "sdk").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sdk" / "__init__.py").write_text(FAKE_SDK)
    (package / "sdk" / "perf_database.py").write_text(FAKE_DATABASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("aisimulate_core", "aisimulate_core.sdk", "aisimulate_core.sdk.perf_database"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("fake_sdk")
def test_build_asks_the_sdk_on_our_grid() -> None:
    profile = build_profile("org/Model", "h200_sxm", tp=2, moe=True)
    assert profile.name == "model__h200_sxm__tp2__vllm"
    # The SDK's prompt length counts cached tokens; ours does not.
    assert profile.prefill_step_ms(2, 2 * 1024, 4096) == pytest.approx(5 + 2 * 10.24 + 0.4096)
    assert profile.decode_step_ms(32, 2048) == pytest.approx(5 + 32 * 0.2048)
    assert (profile.kv_capacity_tokens, profile.kv_bytes_per_token) == (2000, 32)
    assert profile.tdp_w_per_gpu == 300


@pytest.mark.usefixtures("fake_sdk")
def test_build_marks_what_does_not_fit_and_refuses_what_is_unknown() -> None:
    assert not build_profile("org/Model", "tiny").fits
    with pytest.raises(ProfileError, match="no data for this system"):
        build_profile("org/Model", "nowhere")
    with pytest.raises(ProfileError, match="unknown on 1 x h200_sxm with vllm: KeyError"):
        build_profile("unknown", "h200_sxm")


def test_build_without_the_sdk_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProfileError, match="pip install aisimulate"):
        build_profile("org/Model", "h200_sxm")
