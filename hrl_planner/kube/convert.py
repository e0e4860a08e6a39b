"""What the custom resources mean: a cluster spec for the planners, amounts for the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from hrl_planner.errors import ProfileError
from hrl_planner.kube.crds import API_VERSION
from hrl_planner.kube.resources import Router, ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.ledger import Account
from hrl_planner.ledger.replicas import Reservation, TargetClaim
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec

TOTAL, WATTS = "total", "watts"  # resources beside the GPU types


def cluster_spec_of(group: ServingGroup, pools: Sequence[WorkerPool]) -> ClusterSpec:
    """Return the cluster that a group and its pools describe.

    Raises:
        SpecError: if they describe none, with the field and the value.
    """
    spec = group.spec
    return ClusterSpec.from_dict(
        {
            "name": group.metadata.name,
            "model": spec.model,
            "pools": [_plain(pool.spec.to_pool(pool.name)) for pool in pools],
            "budget": _plain(spec.budget),
            "slo_classes": [_plain(item) for item in spec.slo_classes],
            "router": _plain(_router(spec.router, pools)),
            "intervals": _plain(spec.intervals),
            "kv_transfer": _plain(spec.kv_transfer),
            "kv_block_tokens": spec.kv_block_tokens,
            "reward": _plain(spec.reward),
        },
        where=f"servinggroup {group.metadata.namespace}/{group.metadata.name}",
    )


def _router(router: Router, pools: Sequence[WorkerPool]) -> Router:
    """Return a router without grids that name pools there are not; planners do not read them.

    A pool that was deleted, or cannot be planned for, must not stop planning for the others.
    """
    grids = [grid for grid in (router.prefill_grid, router.decode_grid) if grid is not None]
    named = {name for grid in grids for row in grid.pools for name in row}
    if named <= {pool.name for pool in pools}:
        return router
    return router.model_copy(update={"kind": "kv_slo", "prefill_grid": None, "decode_grid": None})


def budget_of(group: ServingGroup) -> dict[str, float]:
    """Return the amount of every bounded resource."""
    budget = group.spec.budget
    amounts = {kind: float(count) for kind, count in budget.gpus.items()}
    if budget.total_gpus is not None:
        amounts[TOTAL] = float(budget.total_gpus)
    if budget.watts is not None:
        amounts[WATTS] = budget.watts
    return amounts


def accounts_of(
    group: ServingGroup, pools: Sequence[WorkerPool], seen: dict[str, int] | None = None
) -> list[Account]:
    """Return the pools as the ledger counts them."""
    bounded = budget_of(group)
    return [
        Account(
            name=pool.name,
            uid=pool.metadata.uid,
            version=pool.metadata.resource_version,
            quota=pool.spec.quota,
            reserved=reservation_of(pool).bound,
            maximum=pool.spec.max_replicas,
            cost=_cost(pool, bounded),
            seen=(seen or {}).get(pool.name, 0),
            leaving=pool.metadata.deletion_timestamp is not None,
        )
        for pool in pools
    ]


def reservation_of(pool: WorkerPool) -> Reservation:
    """Return the pool's book."""
    claim = pool.status.claim
    if claim is None:
        return Reservation(pool.status.reserved)
    entry = TargetClaim(claim.start, claim.to, claim.version, claim.spec_version)
    return Reservation(pool.status.reserved, entry)


def _cost(pool: WorkerPool, bounded: dict[str, float]) -> dict[str, float | None]:
    gpus = pool.spec.gpus_per_replica
    count = None if gpus is None else float(gpus)
    # A GPU type the budget does not name has none: the pool can never grow.
    cost = {pool.spec.gpu_type: count}
    if TOTAL in bounded:
        cost[TOTAL] = count
    if WATTS in bounded:
        each = _watts_per_gpu(pool)
        cost[WATTS] = None if count is None or each is None else count * each
    return cost


def _watts_per_gpu(pool: WorkerPool) -> float | None:
    if pool.spec.power_w_per_gpu is not None:
        return pool.spec.power_w_per_gpu
    try:
        return WorkerProfile.load(pool.spec.profile).tdp_w_per_gpu
    except ProfileError:
        return None


def manifests_of(
    spec: ClusterSpec, targets: dict[str, ScaleTargetRef], namespace: str = "default"
) -> list[dict[str, Any]]:
    """Return the custom resources that describe a cluster spec: the group first, then its pools.

    Args:
        spec: the cluster.
        targets: what each pool is scaled by, by its name.
        namespace: of all objects.
    """
    fields = ("model", "budget", "slo_classes", "router", "intervals", "kv_transfer")
    group = {
        field: _plain(getattr(spec, field)) for field in (*fields, "kv_block_tokens", "reward")
    }
    manifests = [_manifest("ServingGroup", spec.name, namespace, group)]
    for pool in spec.pools:
        data = _plain(pool) | {"group": spec.name, "scale_target_ref": _plain(targets[pool.name])}
        for absent in ("name", "initial_replicas", "mtbf_h"):
            del data[absent]
        made = _manifest("WorkerPool", pool.name, namespace, data)
        # The planner's: applied again, a manifest that named it would set it back.
        del made["spec"]["quotaSequence"]
        manifests.append(made)
    return manifests


def _manifest(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    model: type[BaseModel] = {"ServingGroup": ServingGroup, "WorkerPool": WorkerPool}[kind]
    metadata = {"name": name, "namespace": namespace}
    made = model.model_validate({"metadata": metadata, "spec": spec})
    dumped = made.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": dumped}


def _plain(value: Any) -> Any:
    """Return a model as plain data under its Python names; numbers stay as they are."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=False)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
