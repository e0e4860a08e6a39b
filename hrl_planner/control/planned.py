"""The cluster a policy plans for: what is left of a group when some of its pools cannot be planned.

A pool without profile, GPU count or right to its target is left out of planning, but it holds
GPUs. What it counts in the ledger is taken off the budget; otherwise plans would promise what is
never granted. Where nobody knows how much that is, nothing is granted of that resource, and a
pool that gave some up would not get it back: pools that use it are planned to stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hrl_planner.control.pool_list import PoolList, accounts, claims_of
from hrl_planner.errors import HrlPlannerError, ProfileError
from hrl_planner.kube.convert import TOTAL, WATTS, budget_of, cluster_spec_of
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import Account, counted
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import BudgetSpec, ClusterSpec


@dataclass(frozen=True, slots=True)
class Planned:
    """What a policy plans for.

    Attributes:
        pools: that can be planned for.
        left_out: the others, and why.
        described: the cluster as group and pools describe it, without those left out; so local
            planners see it, too.
        spec: the same with what is left of the budget, and pools that must stay as they are:
            without those that must stay without replicas.
    """

    pools: tuple[WorkerPool, ...]
    left_out: Mapping[str, str]
    described: ClusterSpec
    spec: ClusterSpec


def plannable(
    group: ServingGroup, listed: PoolList
) -> tuple[tuple[WorkerPool, ...], dict[str, str]]:
    """Return the pools a policy can plan for, and why it cannot for the others."""
    fit, left_out = [], dict(listed.unreadable)
    for pool in listed.pools:
        why = _unplannable(group, pool, listed.taken.get(pool.name))
        if why is None:
            fit.append(pool)
        else:
            left_out[pool.name] = why
    return tuple(fit), left_out


def planned(group: ServingGroup, listed: PoolList) -> Planned:
    """Return the cluster to plan for.

    Raises:
        HrlPlannerError: if there is none, or none that can be.
    """
    fit, left_out = plannable(group, listed)
    names = {pool.name for pool in fit}
    books = accounts(group, listed)
    # A pool that is being deleted gives back what it holds; the ledger waits until it did.
    others = [a for a in books if a.name not in names and not a.leaving]
    mine = [a for a in books if a.name in names]
    held = counted(budget_of(group), others, claims_of(group))
    unknown = {resource for resource, amount in held.items() if math.isinf(amount)}
    stay = {a.name: a.granted for a in mine if unknown & a.cost.keys()}
    kept = tuple(pool for pool in fit if stay.get(pool.name, 1) > 0)
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise HrlPlannerError(f"no pool can be planned for{': ' + reasons if reasons else ''}")
    described = cluster_spec_of(group, fit)
    if not others:
        return Planned(fit, left_out, described, described)
    spec = described if len(kept) == len(fit) else cluster_spec_of(group, kept)
    pools = [
        pool.model_copy(update={"min_replicas": n, "max_replicas": n, "initial_replicas": None})
        if (n := stay.get(pool.name)) is not None
        else pool
        for pool in spec.pools
    ]
    least = _least(mine, {pool.name: pool.min_replicas for pool in pools})
    budget = _less(spec.budget, held, least)
    left = spec.model_copy(update={"pools": pools, "budget": budget})
    return Planned(fit, left_out, described, left)


def _least(books: Sequence[Account], replicas: Mapping[str, int]) -> dict[str, float]:
    """Return what the least replicas of pools take of every resource."""
    least: dict[str, float] = {}
    for account in books:
        for resource, each in account.cost.items():
            amount = replicas.get(account.name, 0) * (each or 0.0)
            least[resource] = least.get(resource, 0.0) + amount
    return least


def _less(budget: BudgetSpec, held: Mapping[str, float], least: Mapping[str, float]) -> BudgetSpec:
    """Return what is left of a budget, though no less than the least the pools take."""

    def left(resource: str, amount: float) -> float:
        return max(amount - held[resource], least.get(resource, 0.0))

    return BudgetSpec(
        gpus={kind: int(left(kind, count)) for kind, count in budget.gpus.items()},
        total_gpus=None
        if budget.total_gpus is None
        else max(int(left(TOTAL, budget.total_gpus)), 1),
        watts=None if budget.watts is None else max(left(WATTS, budget.watts), 1.0),
    )


def _unplannable(group: ServingGroup, pool: WorkerPool, taken_by: str | None) -> str | None:
    spec = pool.spec
    if pool.metadata.deletion_timestamp is not None:
        return "is being deleted"
    if taken_by is not None:
        return f"workerpool {taken_by} scales the same target, and is older"
    if spec.gpus_per_replica is None:
        return "gpusPerReplica is unknown"
    if spec.gpu_type not in group.spec.budget.gpus:
        return f"the group has no budget for {spec.gpu_type}"
    try:
        profile = WorkerProfile.load(spec.profile)
        spec.to_pool(pool.name)
    except (ProfileError, ValueError) as error:
        return str(error)
    if not profile.fits or spec.gpus_per_replica < profile.tp:
        return f"profile {spec.profile} does not fit on {spec.gpus_per_replica} {spec.gpu_type}"
    return None
