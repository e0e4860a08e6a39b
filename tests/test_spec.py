"""What a cluster spec accepts, and what it says about what it refuses."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from hrl_planner import _memo
from hrl_planner._memo import once_per_spec
from hrl_planner.errors import SpecError
from hrl_planner.spec import ClusterSpec, shipped_specs

SMALL = {
    "name": "two-pools",
    "model": "Qwen/Qwen3-32B",
    "pools": [
        {
            "name": "prefill",
            "role": "prefill",
            "gpu_type": "H200",
            "gpus_per_replica": 1,
            "profile": "qwen3_32b__h200_sxm__tp1__vllm",
            "min_replicas": 1,
            "max_replicas": 4,
            "startup": {"mean_s": 60},
            "price_per_gpu_hour": 3.59,
        },
        {
            "name": "decode",
            "role": "decode",
            "gpu_type": "A100",
            "gpus_per_replica": 2,
            "profile": "qwen3_32b__a100_sxm__tp2__vllm",
            "min_replicas": 1,
            "max_replicas": 4,
            "startup": {"mean_s": 60},
            "price_per_gpu_hour": 1.39,
        },
    ],
    "budget": {"gpus": {"H200": 4, "A100": 8}},
    "slo_classes": [{"name": "chat", "ttft_ms": 500, "itl_ms": 50}],
}


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(SMALL)


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set the field at a dotted path; numbers index lists."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in parents:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[last] = value
    return data


@pytest.mark.parametrize("name", ["small", "reference", "large"])
def test_shipped_specs_load_by_name(name: str) -> None:
    spec = ClusterSpec.load(name)
    assert spec.name == name
    assert name in shipped_specs()
    assert len(spec.profiles()) == len(spec.pools)


def test_shipped_specs_have_the_promised_sizes() -> None:
    sizes = {n: ClusterSpec.load(n) for n in ("small", "reference", "large")}
    assert [len(s.pools) for s in sizes.values()][:2] == [4, 8]
    assert len(sizes["large"].pools) >= 12
    assert [sum(s.budget.gpus.values()) for s in sizes.values()] == [16, 48, 512]


@pytest.mark.parametrize("name", ["small", "reference", "large"])
def test_every_class_of_a_shipped_spec_is_reachable_on_some_pools_of_each_role(name: str) -> None:
    """Idle latency decides: one prompt of 1,500 tokens, a decode batch of 4 at that context."""
    spec = ClusterSpec.load(name)
    for slo in spec.slo_classes:
        prompt = slo.assign.min_isl_tokens or 1500
        ttft = {
            pool.name: profile.prefill_step_ms(1, prompt)
            for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            if pool.role != "decode"
        }
        itl = {
            pool.name: profile.decode_step_ms(4, prompt)
            for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            if pool.role != "prefill"
        }
        assert min(ttft.values()) < 0.7 * slo.ttft_ms
        assert min(itl.values()) < 0.8 * slo.itl_ms
    tightest = min(slo.itl_ms for slo in spec.slo_classes)
    assert max(itl.values()) > tightest, "no pool is too slow for any class: nothing to decide"


def test_indices_follow_the_order_of_the_file(data: dict[str, Any]) -> None:
    spec = ClusterSpec.from_dict(data)
    assert (spec.pool_index("prefill"), spec.pool_index("decode")) == (0, 1)
    assert spec.class_index("chat") == 0
    assert spec.gpu_types == ("A100", "H200")
    with pytest.raises(SpecError, match="unknown pool 'nope'; there are: prefill, decode"):
        spec.pool_index("nope")
    with pytest.raises(SpecError, match="unknown SLO class 'nope'"):
        spec.class_index("nope")


def test_absent_values_come_from_the_profile(data: dict[str, Any]) -> None:
    spec = ClusterSpec.from_dict(data)
    assert spec.pools[0].initial == 1
    assert spec.power_w_per_replica(1) == 2 * 400
    # 64 layers x 8 KV heads x 128 wide x 2 (key, value) x 2 bytes, whatever the sharding.
    assert spec.kv_bytes_per_token == 64 * 8 * 128 * 2 * 2


def test_replace_validates_again(data: dict[str, Any]) -> None:
    spec = ClusterSpec.from_dict(data)
    assert spec.replace(name="other").name == "other"
    with pytest.raises(SpecError, match=r"budget.gpus.H200: 0 GPUs"):
        spec.replace(budget={"gpus": {"H200": 0, "A100": 8}})


def test_a_spec_is_frozen(data: dict[str, Any]) -> None:
    spec = ClusterSpec.from_dict(data)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pools.0.typo", 1, r"pools\[0\].typo: Extra inputs"),
        ("pools.0.role", "both", r"pools\[0\].role: .*got 'both'"),
        ("pools.0.max_replicas", 0, r"pools\[0\].max_replicas: .*got 0"),
        ("pools.0.min_replicas", -1, r"pools\[0\].min_replicas: .*got -1"),
        ("pools.0.min_replicas", 5, r"pools\[0\]: max_replicas 4 is below min_replicas 5"),
        ("pools.0.initial_replicas", 9, r"initial_replicas 9 is outside 1..4"),
        ("pools.0.initial_replicas", 0, r"initial_replicas 0 is outside 1..4"),
        ("pools.0.name", "decode", "the name 'decode' is used more than once"),
        ("pools.0.name", "a b", r"pools\[0\].name: "),
        ("pools.0.profile", "nope", r"pools\[0\].profile: unknown profile 'nope'"),
        ("pools.0.profile", "/nowhere/x.npz", "no such file"),
        ("pools.0.profile", "qwen3_32b__l40s__tp1__vllm", "weights of Qwen/Qwen3-32B do not fit"),
        ("pools.0.profile", "llama31_8b__h200_sxm__tp1__vllm", "is of model meta-llama"),
        ("pools.1.gpus_per_replica", 1, "fewer than the 2 GPUs"),
        ("pools.0.gpu_type", "B200", r"pools\[0\].gpu_type: 'B200' is not in budget.gpus"),
        ("pools.0.price_per_gpu_hour", float("nan"), "price_per_gpu_hour: .*finite"),
        ("pools.0.latency_scale", 0, "latency_scale: "),
        ("pools.0.startup.mean_s", float("inf"), "mean_s: .*finite"),
        ("pools.0.startup.mean_s", -1, "mean_s: "),
        ("pools.0.startup.spread_s", 10, "spread_s is for uniform"),
        ("pools.0.startup.cv", 0.5, "cv is for lognormal"),
        ("pools.1.role", "prefill", "nothing can serve a request"),
        ("budget.gpus.H200", 0, "budget.gpus.H200: 0 GPUs, but min_replicas of the pools need 1"),
        ("budget.gpus.H200", -1, "must not be negative"),
        ("budget.total_gpus", 2, "budget.total_gpus: 2 GPUs, but min_replicas .* need 3"),
        ("budget.watts", 1000, "budget.watts: 1000 W, but min_replicas of the pools need 1500 W"),
        ("slo_classes.0.ttft_ms", 0, r"slo_classes\[0\].ttft_ms: "),
        ("slo_classes.0.assign", {"min_isl_tokens": 9, "max_isl_tokens": 8}, "exceeds"),
        ("slo_classes.0.assign", {"share": 1.5}, r"slo_classes\[0\].assign.share: "),
        ("slo_classes", [], "slo_classes: "),
        ("intervals.global_s", 5, "global_s 5.0 is shorter than local_s 10.0"),
        ("intervals.window_s", 1, "window_s 1.0 is shorter than scrape_s"),
        ("intervals.local_s", 1e-9, r"intervals.local_s: must be at least 0.1 s, got 1e-09"),
        ("intervals.scrape_s", 0.09, r"intervals.scrape_s: must be at least 0.1 s, got 0.09"),
        ("intervals.window_s", 1e9, "window_s 1000000000.0 .* more than 10000 scrapes"),
        ("intervals.scrape_lag_s", 1e9, "scrape_lag_s 1000000000.0 hold more than 10000 scrapes"),
        ("router.kind", "random", "router.kind: "),
        ("router.kind", "static_grid", "router.prefill_grid: kind static_grid needs it"),
        ("router.prefill_grid", {"pools": [["decode"]]}, "'decode' is not a pool that can prefill"),
        ("router.prefill_grid", {"pools": [["prefill"], []]}, "1 rows of 1"),
        ("router.decode_grid", {"isl_edges": [2, 1], "pools": [["decode"]]}, "increasing"),
        ("kv_block_tokens", 0, "kv_block_tokens: "),
        ("model", "", "model: "),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ClusterSpec.from_dict(changed(data, path, value), where="my.yaml")


def test_clocks_may_tick_ten_times_a_second(data: dict[str, Any]) -> None:
    changed(data, "intervals", {"local_s": 0.1, "scrape_s": 0.1})
    assert ClusterSpec.from_dict(data).intervals.window_s == 60.0


def test_initial_replicas_must_fit_the_budget_too(data: dict[str, Any]) -> None:
    changed(data, "pools.0.max_replicas", 9)
    changed(data, "pools.0.initial_replicas", 5)
    with pytest.raises(SpecError, match="4 GPUs, but initial_replicas of the pools need 5"):
        ClusterSpec.from_dict(data)


def test_shares_may_not_exceed_one(data: dict[str, Any]) -> None:
    data["slo_classes"] = [
        {"name": n, "ttft_ms": 1, "itl_ms": 1, "assign": {"share": 0.6}} for n in "ab"
    ]
    with pytest.raises(SpecError, match=r"adds up to 1.2, above 1"):
        ClusterSpec.from_dict(data)


def test_aggregated_pools_need_token_budget_beyond_their_batch(data: dict[str, Any]) -> None:
    changed(data, "pools.0.role", "aggregated")
    assert ClusterSpec.from_dict(copy.deepcopy(data)).pools[0].role == "aggregated"
    changed(data, "pools.0.max_num_batched_tokens", 256)
    with pytest.raises(SpecError, match="must exceed max_num_seqs 256"):
        ClusterSpec.from_dict(data)


def test_all_errors_come_at_once_each_with_the_file(data: dict[str, Any]) -> None:
    changed(data, "pools.0.role", "both")
    changed(data, "kv_block_tokens", 0)
    with pytest.raises(SpecError) as caught:
        ClusterSpec.from_dict(data, where="my.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("my.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1, 2", r"bad.yaml, line \d+, column \d+: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: not valid YAML: the key 'a' appears twice"),
        ("? [1, 2]\n: x\n", "not valid YAML"),
        ("- 1\n- 2\n", "a spec is a mapping of fields, this is list"),
        ("", "this is NoneType"),
        ("name: x\n", "bad.yaml: model: Field required"),
        ("1: x\n", "bad.yaml: "),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("name: \x00\n", "bad.yaml: cannot be read"),
    ],
)
def test_malformed_files_are_refused_with_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        ClusterSpec.load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpecError, match="cannot be read"):
        ClusterSpec.load(path)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(SpecError, match=r"unknown spec 'refrence'.* large, reference, small"):
        ClusterSpec.load("refrence")
    with pytest.raises(SpecError, match="no such file"):
        ClusterSpec.load("nowhere/x.yaml")
    with pytest.raises(SpecError, match="unknown spec"):
        ClusterSpec.load("../specs/small")


def test_the_reference_page_names_every_field() -> None:
    page = (Path(__file__).parents[1] / "docs" / "spec.md").read_text()
    models: list[type[BaseModel]] = [ClusterSpec]
    for model in models:
        for name, field in model.model_fields.items():
            assert f"`{name}`" in page, f"docs/spec.md does not explain {model.__name__}.{name}"
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in models:
                    models.append(kind)
    assert len(models) == 11  # the walk reached every nested model


def test_profile_paths_are_relative_to_the_spec(tmp_path: Path, data: dict[str, Any]) -> None:
    from hrl_planner.profile import WorkerProfile

    WorkerProfile.load("qwen3_32b__h200_sxm__tp1__vllm").save(tmp_path / "mine.npz")
    changed(data, "pools.0.profile", "mine.npz")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    assert ClusterSpec.load(path).profiles()[0].name == "mine"


def test_a_spec_is_read_once_and_again_when_it_or_a_profile_has_changed(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    from hrl_planner.profile import WorkerProfile

    profile = WorkerProfile.load("qwen3_32b__h200_sxm__tp1__vllm")
    profile.save(tmp_path / "mine.npz")
    changed(data, "pools.0.profile", "mine.npz")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    first = ClusterSpec.load(path)
    assert ClusterSpec.load(path) is first
    replace(profile, kv_capacity_tokens=profile.kv_capacity_tokens + 16).save(tmp_path / "mine.npz")
    second = ClusterSpec.load(path)
    assert second.profiles()[0].kv_capacity_tokens == first.profiles()[0].kv_capacity_tokens + 16
    path.write_text(yaml.safe_dump({**data, "description": "another"}))
    assert ClusterSpec.load(path).description == "another"


def test_what_follows_from_a_spec_is_found_once_and_forgotten_with_it() -> None:
    made = []

    @once_per_spec
    def pools(spec: ClusterSpec, extra: int) -> int:
        made.append(spec.name)
        return len(spec.pools) + extra

    spec = ClusterSpec.load("small").replace(name="short-lived")
    assert pools(spec, 1) == pools(spec, 1) == pools(spec, 2) - 1
    assert made == ["short-lived"] * 2
    kept = len(_memo._KEPT)
    del spec
    gc.collect()
    assert len(_memo._KEPT) < kept
