"""Rounds of many planners in one process, and who may make them; without an API server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

pytest.importorskip("kubernetes")

from kubernetes.config import ConfigException

from hrl_planner.control.election import Elector
from hrl_planner.control.run import Key, Planner, Runner
from hrl_planner.errors import KubeError

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Done:
    text: str = ""


@dataclass
class Told:
    """A planner that does what it is told, and counts."""

    name: str
    act: Callable[[], None] = lambda: None
    interval_s: float = 0.02
    rounds: int = 0
    looks: int = 0
    asked: object = None
    followed: threading.Event = field(default_factory=threading.Event)
    several: threading.Event = field(default_factory=threading.Event)

    def round(self) -> Done:
        self.rounds += 1
        if self.rounds >= 3:
            self.several.set()
        self.act()
        return Done()

    def follow(self) -> None:
        self.looks += 1
        if self.looks >= 3:
            self.followed.set()


@dataclass
class Leads:
    """An election with a known outcome."""

    not_ours: frozenset[str] = frozenset()
    answered: bool = True
    wanted: tuple[str, ...] = ()

    def want(self, names: list[str]) -> None:
        self.wanted = tuple(names)

    def leads(self, name: str) -> bool:
        return name not in self.not_ours


@dataclass
class Heard:
    """Who was heard of."""

    names: set[str] = field(default_factory=set)
    failures: set[str] = field(default_factory=set)
    asked: set[object] = field(default_factory=set)
    followers: set[str] = field(default_factory=set)
    leaders: dict[str, bool] = field(default_factory=dict)

    def led(self, level: str, name: str, leads: bool) -> None:
        self.leaders[name] = leads

    def rounded(self, level: str, name: str, done: Done, took_s: float) -> None:
        self.names.add(name)

    def followed(self, level: str, name: str, done: object, took_s: float) -> None:
        self.followers.add(name)

    def failed(self, level: str, name: str, took_s: float, *, gone: bool, asked: object) -> None:
        self.failures.add(name)
        self.asked.add(asked)

    def ended(self, level: str, name: str) -> None:
        del self.leaders[name]


def keyed(*planners: Told) -> dict[Key, Planner]:
    return {Key("local", planner.name): planner for planner in planners}


@contextmanager
def running(runner: Runner) -> Iterator[None]:
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield
    finally:
        runner.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_planner_that_waits_keeps_no_other_waiting() -> None:
    free = threading.Event()
    slow = Told("slow", lambda: assert_set(free))
    others = [Told(f"p{i}") for i in range(20)]
    planners = keyed(slow, *others)
    with running(Runner(lambda: planners, Leads(), Heard())):
        for other in others:
            assert other.several.wait(PATIENCE_S)
        assert slow.rounds == 1
        free.set()
        assert slow.several.wait(PATIENCE_S)


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def test_planners_that_come_begin_and_those_that_go_end() -> None:
    first, second = Told("first"), Told("second")
    planners = keyed(first)
    election = Leads()
    heard = Heard()
    with running(Runner(lambda: planners, election, heard)):
        assert first.several.wait(PATIENCE_S)
        planners = keyed(second)
        assert second.several.wait(PATIENCE_S)
        ended = first.rounds
        second.several.clear()
        second.rounds = 0
        assert second.several.wait(PATIENCE_S)
        assert first.rounds == ended
    assert election.wanted == ("hrl-planner-local-second",)
    assert heard.leaders == {"second": True}


def test_who_does_not_lead_looks_and_acts_as_soon_as_it_does() -> None:
    planner = Told("p", interval_s=0.02)
    election = Leads(frozenset({"hrl-planner-local-p"}))
    heard = Heard()
    with running(Runner(lambda: keyed(planner), election, heard)):
        assert planner.followed.wait(PATIENCE_S)
        assert planner.rounds == 0 and not heard.names
        assert heard.leaders == {"p": False}
        election.not_ours = frozenset()
        assert planner.several.wait(PATIENCE_S)
    assert heard.followers == {"p"}


def test_only_who_leads_makes_rounds() -> None:
    led, other = Told("led"), Told("other")
    planners = keyed(led, other)
    with running(Runner(lambda: planners, Leads(frozenset({"hrl-planner-local-other"})), Heard())):
        assert led.several.wait(PATIENCE_S)
    assert other.rounds == 0


def fails() -> None:
    raise KubeError("refused")


def breaks() -> None:
    raise RuntimeError("a fault of its own")


@pytest.mark.parametrize("act", [fails, breaks])
def test_a_round_that_fails_is_tried_again_and_told_once(
    act: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Told("bad", act, asked="what a policy remembers"), Told("good")
    planners = keyed(bad, good)
    heard = Heard()
    with running(Runner(lambda: planners, Leads(), heard)):
        assert bad.several.wait(PATIENCE_S)
        assert good.several.wait(PATIENCE_S)
    assert (heard.names, heard.failures) == ({"good"}, {"bad"})
    assert heard.asked == {"what a policy remembers"}
    if act is fails:
        assert len([m for m in caplog.messages if "refused" in m]) == 1


def test_a_woken_planner_makes_a_round_before_its_time() -> None:
    seen = [threading.Event(), threading.Event()]
    planner = Told("one", lambda: seen[planner.rounds - 1].set(), interval_s=3600.0)
    runner = Runner(lambda: keyed(planner), Leads(), Heard())
    with running(runner):
        assert seen[0].wait(PATIENCE_S)
        while not seen[1].wait(0.05):
            runner.wake(Key("local", "one"))
    assert planner.rounds == 2


class Stumbles:
    """Holds all leases, but at first something is wrong that nobody has thought of."""

    unfinished = False

    def __init__(self, fault: Exception) -> None:
        self.faults = [fault]
        self.held = threading.Event()

    def keep(self, names: Collection[str]) -> set[str]:
        if self.faults:
            raise self.faults.pop()
        self.held.set()
        return set(names)

    def release(self) -> None:
        raise OSError("the token is gone")


@pytest.mark.parametrize("fault", [ConfigException("no token"), OSError(5, "token"), KeyError("x")])
def test_election_goes_on_whatever_went_wrong(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Stumbles(fault)
    with Elector(keeper) as elector:
        elector.want(["hrl-planner-local-a"])
        assert keeper.held.wait(PATIENCE_S)
    assert any(type(fault).__name__ in message for message in caplog.messages)
    assert "the token is gone" in caplog.messages[-1]
