"""Custom resources: the checked-in definitions, what API servers take, what the objects mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hrl_planner.kube import ServingGroup, WorkerPool, accounts_of, budget_of, cluster_spec_of
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import definitions, to_yaml
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.spec import ClusterSpec, shipped_specs

CHECKED_IN = Path(__file__).parent.parent / "deploy" / "crds"


def objects(spec: ClusterSpec) -> tuple[ServingGroup, list[WorkerPool]]:
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
    group, *pools = manifests_of(spec, targets)
    return ServingGroup.model_validate(group), [WorkerPool.model_validate(p) for p in pools]


def schemas() -> Iterator[dict[str, Any]]:
    for definition in definitions().values():
        for version in definition["spec"]["versions"]:
            yield from nested(version["schema"]["openAPIV3Schema"])


def nested(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for child in (*schema.get("properties", {}).values(), schema.get("items")):
        if child is not None:
            yield from nested(child)
    if "additionalProperties" in schema:
        yield from nested(schema["additionalProperties"])


def test_the_checked_in_definitions_are_those_the_models_make() -> None:
    made = {name: to_yaml(definition) for name, definition in definitions().items()}
    assert {
        p.name: p.read_text(encoding="utf-8") for p in CHECKED_IN.glob("hrl-planner.io_*.yaml")
    } == made


def test_every_field_is_structural() -> None:
    for schema in schemas():
        assert isinstance(schema["type"], str), schema
        assert not {"$ref", "anyOf", "oneOf", "const", "title"} & schema.keys(), schema
        assert not ("properties" in schema and "additionalProperties" in schema), schema
        assert isinstance(schema.get("exclusiveMinimum", True), bool), schema


def test_a_default_object_is_one_whose_fields_all_have_defaults() -> None:
    for schema in schemas():
        if schema.get("default") == {}:
            assert not schema.get("required"), schema


def test_fields_of_the_spec_are_spelt_as_kubernetes_spells_them() -> None:
    text = json.dumps(definitions())
    for name in ("ttftMs", "itlMs", "totalGpus", "gpusPerReplica", "minIslTokens", "shedAbove"):
        assert f'"{name}"' in text
    assert '"ttft_ms"' not in text


@pytest.mark.parametrize("name", shipped_specs())
def test_a_spec_survives_the_way_through_custom_resources(name: str) -> None:
    spec = ClusterSpec.load(name)
    group, pools = objects(spec)
    again = cluster_spec_of(group, pools)
    for field in ("model", "slo_classes", "router", "intervals", "kv_transfer", "reward"):
        assert getattr(again, field).__class__.__mro__, field
        assert _dump(getattr(again, field)) == _dump(getattr(spec, field)), field
    left_out = {"initial_replicas": None, "mtbf_h": None}
    assert [p.model_dump() for p in again.pools] == [p.model_dump() | left_out for p in spec.pools]


def _dump(value: Any) -> Any:
    return (
        [_dump(v) for v in value]
        if isinstance(value, tuple)
        else (value.model_dump(by_alias=False) if hasattr(value, "model_dump") else value)
    )


def test_a_pool_without_gpu_count_has_an_unknown_cost_of_every_bounded_resource() -> None:
    group, pools = objects(ClusterSpec.load("small"))
    unknown = pools[0].model_copy(
        update={"spec": pools[0].spec.model_copy(update={"gpus_per_replica": None})}
    )
    account = accounts_of(group, [unknown])[0]
    assert account.cost[unknown.spec.gpu_type] is None
    assert set(budget_of(group)) >= {unknown.spec.gpu_type}


def test_a_pool_that_is_gone_takes_the_grids_that_name_it_along() -> None:
    spec = ClusterSpec.load("small")
    group, pools = objects(spec)
    left = [pool for pool in pools if pool.name != "decode-h100"]
    assert cluster_spec_of(group, pools).router.decode_grid == spec.router.decode_grid
    assert cluster_spec_of(group, left).router.decode_grid is None
