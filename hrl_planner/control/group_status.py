"""What the global planner tells in its group's status. Pure functions, as Kubernetes spells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hrl_planner.control.conditions import condition
from hrl_planner.control.decide import GroupPlan
from hrl_planner.control.decision import Flows
from hrl_planner.control.planned import plannable
from hrl_planner.control.pool_list import PoolList, accounts, claims_of
from hrl_planner.kube.convert import budget_of
from hrl_planner.kube.resources import ServingGroup
from hrl_planner.ledger import Settlement, counted

_SLACK = 1e-6  # watts are real numbers


def status_of(
    group: ServingGroup,
    listed: PoolList,
    plan: GroupPlan | None,
    flows: Flows | None,
    settlement: Settlement,
) -> dict[str, Any]:
    """Return the fields that changed or may have, conditions aside."""
    status: dict[str, Any] = {"observedGeneration": group.metadata.generation}
    if plan is not None:
        status |= {"planned": _replaced(group.status.planned, plan.quotas)}
        status |= {"reason": plan.reason}
    if flows is not None:
        before = group.status.flows
        status["flows"] = _replaced(before, flows) | {
            name: _replaced(before.get(name, {}), rates) for name, rates in flows.items()
        }
    status["waits"] = _replaced(group.status.waits, settlement.waits)
    used = counted(budget_of(group), accounts(group, listed), claims_of(group))
    finite = {name: amount for name, amount in used.items() if math.isfinite(amount)}
    status["granted"] = _replaced(group.status.granted, finite)
    return status


def conditions_of(
    group: ServingGroup,
    listed: PoolList,
    *,
    planned: tuple[bool, str, str] | None,
    denied: str,
) -> list[dict[str, Any]]:
    """Return the conditions of a group.

    Args:
        group: it.
        listed: its pools.
        planned: whether there is a new plan, reason and message; None where none was due.
        denied: what could not be written, for want of permission.
    """
    before = group.status.conditions
    made = [
        condition(before, "WithinBudget", *_within_budget(group, listed)),
        condition(before, "AllPoolsPlanned", *_all_planned(group, listed)),
        condition(before, "Unhindered", not denied, "Denied" if denied else "Free", denied),
    ]
    if planned is not None:
        made.append(condition(before, "Planned", *planned))
    kinds = {c["type"] for c in made}
    kept = [c for c in before if c.type not in kinds]
    # As the status is read back, so that an unchanged one is recognised.
    told = [{**c, "observedGeneration": None} for c in made]
    return [*told, *(c.model_dump(by_alias=True) for c in kept)]


def _within_budget(group: ServingGroup, listed: PoolList) -> tuple[bool, str, str]:
    budget = budget_of(group)
    used = counted(budget, accounts(group, listed), claims_of(group))
    over = [
        f"{resource}: {used[resource]:g} of {amount:g}"
        for resource, amount in budget.items()
        if amount + _SLACK < used[resource] < math.inf
    ]
    unknown = [resource for resource in budget if math.isinf(used[resource])]
    if unknown:
        over.append(f"how much is held is not known of: {', '.join(unknown)}")
    reason = "Fits" if not over else "Unknown" if len(over) == bool(unknown) else "OverBudget"
    return not over, reason, "; ".join(over)


def _all_planned(group: ServingGroup, listed: PoolList) -> tuple[bool, str, str]:
    _, left_out = plannable(group, listed)
    words = "; ".join(f"{name}: {why}" for name, why in left_out.items())
    return not left_out, "PoolsLeftOut" if left_out else "Complete", words


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a merge patch from one mapping to another: what is gone is null."""
    return {name: None for name in before if name not in after} | dict(after)
