"""The audit of modelled clusters: what an act of a hand excuses, and that it excuses no more."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from hrl_planner.ledger import Claim
from tests.ledger_cluster import Cluster
from tests.ledger_model import Send

BUDGET = {"X": 6.0, "Y": 5.0, "total": 4.0, "watts": 6000.0}
RUNNING = {"a": 1, "b": 0, "c": 0}


def raised_by_hand_in_the_middle_of_a_round() -> tuple[Cluster, Send]:
    """Return a cluster, and the book its first leader is about to write.

    It is of before the hand, and fills the budget. So does the book of another leader, which is on
    its way and names the pool that the hand then grants three replicas.
    """
    plans = (RUNNING | {"c": 3}, RUNNING | {"b": 1})
    cluster = Cluster(BUDGET, plans, RUNNING, "calm", {}, counts_pods=False)
    first, second = cluster.globals
    (book,) = first.step(cluster.world)
    cluster.world.sent = second.step(cluster.world)
    with cluster.audit.outside(lambda: cluster.world, in_flight=True):
        cluster.world.touch_pool("b", quota=3)
    return cluster, book


def test_a_planner_may_fill_the_budget_beside_all_that_a_hand_grants_meanwhile() -> None:
    cluster, book = raised_by_hand_in_the_middle_of_a_round()
    assert cluster.world.deliver(book)
    cluster.audit.check(cluster.world, in_flight=True)
    assert cluster.audit.counted(cluster.world)["total"] == 4.0 + 3 * 2.0


def test_a_replica_more_than_that_is_found() -> None:
    cluster, book = raised_by_hand_in_the_middle_of_a_round()
    (claim,) = cast("tuple[Claim, ...]", book.value)
    assert cluster.world.deliver(book._replace(value=(replace(claim, quota=claim.quota + 1),)))
    with pytest.raises(AssertionError, match="total: 11 granted or held"):
        cluster.audit.check(cluster.world, in_flight=True)
