"""Who leads which planner: many leases by one heartbeat, beside others that renew their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control.election import EachItsOwn, Elector, OneHeartbeat
from hrl_planner.control.lease import Leases
from hrl_planner.errors import KubeError
from hrl_planner.localcluster import ControlPlane

pytestmark = pytest.mark.kube

ALL = ["hrl-planner-global-g", "hrl-planner-local-a", "hrl-planner-local-b"]
ONE = "hrl-planner-local-a"


@dataclass
class Place:
    """A namespace, and a clock that all candidates share."""

    api: client.ApiClient
    namespace: str
    now_s: float = 0.0

    def leases(self, holder: str) -> Leases:
        return Leases(self.api, self.namespace, holder, lambda: self.now_s)

    def many(self, holder: str) -> OneHeartbeat:
        return OneHeartbeat(self.leases(holder), lambda: self.now_s)

    def single(self, holder: str) -> EachItsOwn:
        return EachItsOwn(self.leases(holder))

    def names(self) -> set[str]:
        return set(self.leases("reader").read_all())


@pytest.fixture
def place(control_plane: ControlPlane) -> Iterator[Place]:
    with control_plane.namespace("election") as name:
        yield Place(control_plane.client(), name)


def test_one_heartbeat_holds_all_and_is_all_that_is_renewed(place: Place) -> None:
    first, second = place.many("first"), place.many("second")
    assert first.keep(ALL) == set(ALL)
    versions = {n: x.metadata.resource_version for n, x in place.leases("x").read_all().items()}
    for _ in range(6):
        place.now_s += 4.0
        assert first.keep(ALL) == set(ALL)
        assert second.keep(ALL) == set()
    after = {n: x.metadata.resource_version for n, x in place.leases("x").read_all().items()}
    assert {n for n in versions if versions[n] != after[n]} == {"hrl-planner-process-first"}


def test_a_process_that_died_is_followed_once_its_heartbeat_ran_out(place: Place) -> None:
    first, second = place.many("first"), place.many("second")
    first.keep(ALL)
    assert second.keep(ALL) == set()
    place.now_s += 9.0
    assert second.keep(ALL) == set()
    place.now_s += 2.0
    assert second.keep(ALL) == set(ALL)
    assert "hrl-planner-process-first" not in place.names()
    assert first.keep(ALL) == set(), "it was only asleep, and finds that it has lost all"


def test_a_time_in_which_nobody_could_look_is_no_reason_to_take_over(place: Place) -> None:
    first, second = place.many("first"), place.many("second")
    first.keep(ALL)
    assert second.keep(ALL) == set()
    place.now_s += 20.0
    assert second.keep(ALL) == set(), "the first may be about to renew"
    assert first.keep(ALL) == set(ALL)


def test_whoever_stops_lets_go_of_all_at_once(place: Place) -> None:
    first, second = place.many("first"), place.many("second")
    first.keep(ALL)
    assert second.keep(ALL) == set()
    first.release()
    assert second.keep(ALL) == set(ALL)


@pytest.mark.parametrize("many_first", [True, False])
def test_a_process_of_one_planner_and_one_of_all_never_lead_the_same(
    place: Place, many_first: bool
) -> None:
    many, single = place.many("many"), place.single("single")
    if many_first:
        assert many.keep(ALL) == set(ALL)
        for _ in range(4):
            assert single.keep([ONE]) == set()
            place.now_s += 4.0
            many.keep(ALL)
        assert single.keep([ONE]) == set()
        place.now_s += 6.0
        assert single.keep([ONE]) == set()
        place.now_s += 5.0
        assert single.keep([ONE]) == {ONE}
    else:
        assert single.keep([ONE]) == {ONE}
    assert many.keep(ALL) == set(ALL) - {ONE}
    single.release()
    assert many.keep(ALL) == set(ALL)


def test_the_lease_of_a_planner_that_ended_is_gone(place: Place) -> None:
    many = place.many("many")
    many.keep(ALL)
    assert many.keep(ALL[:2]) == set(ALL[:2])
    assert place.names() == {*ALL[:2], "hrl-planner-process-many"}


def test_it_is_gone_too_if_the_process_stalled_meanwhile(place: Place) -> None:
    many = place.many("many")
    many.keep(ALL)
    place.now_s += 100.0
    assert many.keep(ALL[:2]) == set(ALL[:2])
    assert place.names() == {*ALL[:2], "hrl-planner-process-many"}


def test_who_was_cut_off_leads_nothing_before_others_may(place: Place) -> None:
    class CutOff(EachItsOwn):
        away = False

        def keep(self, names: object) -> set[str]:
            if self.away:
                raise KubeError("no answer")
            return super().keep(ALL)

    keeper = CutOff(place.leases("mine"))
    elector = Elector(keeper, lambda: place.now_s)
    elector.want(ALL)
    elector.keep_once()
    assert elector.leads(ONE)
    keeper.away = True
    place.now_s += 6.0
    elector.keep_once()
    assert elector.leads(ONE)
    place.now_s += 1.0
    assert not elector.leads(ONE)
    keeper.away = False
    elector.keep_once()
    assert elector.leads(ONE)


def test_a_process_that_stalled_goes_on_if_nobody_took_over(place: Place) -> None:
    first = place.many("first")
    first.keep(ALL)
    before = {n: x.metadata.resource_version for n, x in place.leases("x").read_all().items()}
    place.now_s += 12.0
    assert first.keep(ALL) == set(ALL)
    after = {n: x.metadata.resource_version for n, x in place.leases("x").read_all().items()}
    assert {n for n in before if before[n] != after[n]} == {"hrl-planner-process-first"}


def test_who_may_not_end_a_heartbeat_waits_longer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "remove", lambda self, lease: False)
    many, single = place.many("many"), place.single("single")
    many.keep(ALL)
    for _ in range(8):
        assert single.keep([ONE]) == set()
        place.now_s += 4.0
    assert single.keep([ONE]) == {ONE}
    assert many.keep(ALL) == set(ALL) - {ONE}, "it has forgotten what it held"
