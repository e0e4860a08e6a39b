"""The planners under random schedules of faults and hands (`planner_cluster.py`).

`PLANNER_SCHEDULES=20000 pytest -n0 tests/test_planner_schedules.py` runs as many as asked, each
schedule another one every time. `PLANNER_SEED` runs that one alone: a failure tells it.

`PLANNER_EXAMPLES=2000 pytest -n0 tests/test_planner_schedules.py -k shrink` runs as many shorter
schedules that hypothesis draws: what fails there is shrunk to the few moves it takes.
"""

from __future__ import annotations

import itertools
import os
import secrets
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("kubernetes")

from hrl_planner.control import Connector, LocalPlanner, NoMetrics
from hrl_planner.control.decision import QUOTA
from hrl_planner.control.local_planner import SETTLE_S
from hrl_planner.kube.crds import POOLS
from tests.ledger_model import NAMES
from tests.modelled_kubernetes import DEPLOYMENTS, Answer, ModelClient, Request
from tests.planner_cluster import PlannerCluster
from tests.planner_leaders import Watches
from tests.planner_site import NAMESPACE, Site

SCHEDULES = int(os.environ.get("PLANNER_SCHEDULES", "100"))
EXAMPLES = int(os.environ.get("PLANNER_EXAMPLES", "50"))
ROOMY = {"X": 9.0, "Y": 9.0, "total": 18.0, "watts": 9000.0}


def seeds() -> range:
    if "PLANNER_SEED" in os.environ:
        one = int(os.environ["PLANNER_SEED"])
        return range(one, one + 1)
    first = secrets.randbelow(2**40) if "PLANNER_SCHEDULES" in os.environ else 0
    return range(first, first + SCHEDULES // 2)


@pytest.mark.parametrize("hands", [False, True], ids=["planners alone", "with hands"])
def test_the_budget_is_never_exceeded_and_the_plan_is_reached(hands: bool) -> None:
    for seed in seeds():
        try:
            PlannerCluster(Random(seed), hands=hands).run()
        except AssertionError as error:
            error.add_note(f"PLANNER_SEED={seed}")
            raise


@pytest.mark.parametrize("hands", [False, True], ids=["planners alone", "with hands"])
@settings(max_examples=EXAMPLES // 2, derandomize="PLANNER_EXAMPLES" not in os.environ)
@given(random=st.randoms(use_true_random=False))
def test_the_same_holds_of_schedules_that_shrink(random: Random, hands: bool) -> None:
    PlannerCluster(random, hands=hands).run(fewest=1, most=25)


def test_a_pool_that_watches_do_not_list_yet_is_left_as_it_is() -> None:
    """What is not in a watch is read at the API server; its neighbours come of the watch."""
    budget = {"X": 8.0, "Y": 8.0, "total": 16.0, "watts": 6000.0}
    running = dict.fromkeys(NAMES, 1)
    site = Site(budget, running, dict.fromkeys(NAMES, 3), booked=True, scaler=QUOTA)
    now = Connector(ModelClient(site.api.answer), NAMESPACE)
    view = {**site.api.objects, POOLS: {}}
    look = Watches(view, now, {})
    planner = LocalPlanner(now, "a", NoMetrics(), lambda: 0.0, look=look)
    assert planner.round().written == ()
    view[POOLS] = site.api.objects[POOLS]
    assert planner.round().target == 3


def test_replicas_are_counted_once_whenever_another_lowers_their_target() -> None:
    """They are asked for when the target is read, and draining when the pods are listed."""
    for moment in range(20):
        three = dict.fromkeys(NAMES, 3)
        site = Site(ROOMY, three, dict(three), booked=True, scaler=QUOTA)
        site.api.patch(POOLS, "a", {"status": {"reserved": 4}}, "status")  # one drained long ago
        planner = _interrupted(site, moment)
        planner.round()
        site.time_passes(SETTLE_S + 1.0)
        planner.round()
        assert site.pools["a"]["status"]["reserved"] <= 4, f"lowered before request {moment}"


def test_a_pool_made_anew_is_booked_only_once_its_target_has_settled_again() -> None:
    """What the planner of the pool that was deleted by force has sent may arrive until then."""
    three = dict.fromkeys(NAMES, 3)
    site = Site(ROOMY, three, dict(three), booked=True, scaler=QUOTA)
    connector = Connector(ModelClient(site.write), NAMESPACE)
    planner = LocalPlanner(connector, "a", NoMetrics(), lambda: site.now_s)
    planner.round()
    site.time_passes(2.0 * SETTLE_S)
    site.remove_pool("a")
    site.create_pool("a")
    planner.round()
    assert "reserved" not in site.pools["a"]["status"]
    site.time_passes(SETTLE_S + 1.0)
    planner.round()
    assert site.pools["a"]["status"]["reserved"] == 3


def _interrupted(site: Site, moment: int) -> LocalPlanner:
    """Return a planner before whose n-th request its target is scaled to none, and pods drain."""
    asked = itertools.count()

    def carry(request: Request) -> Answer:
        if next(asked) == moment:
            site.write(Request("PATCH", DEPLOYMENTS, "a", body={"spec": {"replicas": 0}}))
            site.controller_acts("a", catch_up=True)
        return site.write(request)

    connector = Connector(ModelClient(carry), NAMESPACE)
    return LocalPlanner(connector, "a", NoMetrics(), lambda: site.now_s)
