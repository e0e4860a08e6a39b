from __future__ import annotations

import asyncio

import pytest

from hrl_planner.router.chooser import Ask
from hrl_planner.router.config import AdmissionConfig
from hrl_planner.router.request import Refusal
from hrl_planner.router.waiting import WaitingRoom
from tests.routers import Bench, aggregated_spec

BENCH = Bench(aggregated_spec())


class Door:
    """Lets in what it is told to, in the order it is asked."""

    def __init__(self) -> None:
        self.places = 0
        self.asked: list[Ask] = []
        self.back: list[str] = []

    def __call__(self, ask: Ask, now_s: float, forced: bool) -> str | None:
        self.asked.append(ask)
        if forced:
            return "forced"
        if self.places == 0:
            return None
        self.places -= 1
        return "place"


def room(door: Door, **config: float) -> WaitingRoom[str]:
    return WaitingRoom(AdmissionConfig.model_validate(config), door, door.back.append)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_the_nearest_deadline_leaves_first_and_priority_comes_before_deadlines():
    async def run() -> list[str]:
        door, left = Door(), []
        waiting = room(door)

        async def guest(name: str, class_name: str, priority: float) -> None:
            await waiting.wait(BENCH.ask(class_name), priority, 0.0, 10.0)
            left.append(name)

        tasks = [
            asyncio.create_task(guest("loose", "loose", 0.0)),
            asyncio.create_task(guest("tight", "tight", 0.0)),
            asyncio.create_task(guest("urgent", "loose", 5.0)),
        ]
        await settle()
        assert len(waiting) == 3
        for _ in range(3):
            door.places = 1
            waiting.look(0.05)
            await settle()
        await asyncio.gather(*tasks)
        return left

    assert asyncio.run(run()) == ["urgent", "tight", "loose"]


def test_what_is_too_late_is_refused_only_where_its_class_sheds():
    async def run() -> None:
        door = Door()
        waiting = room(door, max_wait_s=5.0)
        tight = asyncio.create_task(waiting.wait(BENCH.ask("tight"), 0.0, 0.0, 0.1))
        loose = asyncio.create_task(waiting.wait(BENCH.ask("loose"), 0.0, 0.0, 0.1))
        await settle()
        waiting.look(0.2)
        await settle()
        with pytest.raises(Refusal) as refused:
            await tight
        assert refused.value.status == 429 and refused.value.retry_after_s == 1.0
        assert not loose.done()
        # A late request is asked for as if it had come just now, and keeps its own arrival.
        assert door.asked[-1].arrived_s == 0.0
        waiting.look(5.1)
        assert await loose == "forced"

    asyncio.run(run())


def test_in_time_goes_before_late():
    async def run() -> list[str]:
        door, left = Door(), []
        waiting = room(door)

        async def guest(name: str, latest_s: float) -> None:
            await waiting.wait(BENCH.ask("loose"), 0.0, 0.0, latest_s)
            left.append(name)

        tasks = [asyncio.create_task(guest("late", 0.1)), asyncio.create_task(guest("in time", 9))]
        await settle()
        waiting.look(0.5)
        for _ in range(2):
            door.places = 1
            waiting.look(0.6)
            await settle()
        await asyncio.gather(*tasks)
        return left

    assert asyncio.run(run()) == ["in time", "late"]


def test_a_client_that_leaves_is_forgotten_and_takes_no_place():
    async def run() -> None:
        door = Door()
        waiting = room(door)
        gone = asyncio.create_task(waiting.wait(BENCH.ask("tight"), 0.0, 0.0, 10.0))
        stays = asyncio.create_task(waiting.wait(BENCH.ask("loose"), 0.0, 0.0, 10.0))
        await settle()
        gone.cancel()
        await settle()
        assert len(waiting) == 1
        door.places = 1
        waiting.look(0.1)
        assert await stays == "place"
        assert len(waiting) == 0

    asyncio.run(run())


def test_a_place_given_in_the_moment_its_client_leaves_is_given_back():
    async def run() -> None:
        door = Door()
        waiting = room(door)
        guest = asyncio.create_task(waiting.wait(BENCH.ask("tight"), 0.0, 0.0, 10.0))
        await settle()
        door.places = 1
        waiting.look(0.1)
        guest.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guest
        assert door.back == ["place"]

    asyncio.run(run())


def test_a_full_room_refuses_at_the_door():
    async def run() -> None:
        waiting = room(Door(), max_waiting=1)
        first = asyncio.create_task(waiting.wait(BENCH.ask("loose"), 0.0, 0.0, 10.0))
        await settle()
        with pytest.raises(Refusal, match="too many") as refused:
            await waiting.wait(BENCH.ask("loose"), 0.0, 0.0, 10.0)
        assert refused.value.status == 429
        first.cancel()

    asyncio.run(run())


def test_clients_that_have_left_take_no_room_however_far_behind_they_were():
    async def run() -> None:
        waiting = room(Door(), max_waiting=100)

        async def come(class_name: str, n: int) -> list[asyncio.Task[str]]:
            asks = [BENCH.ask(class_name) for _ in range(n)]
            guests = [asyncio.create_task(waiting.wait(ask, 0.0, 0.0, 99.0)) for ask in asks]
            await settle()
            return guests

        patient = await come("tight", 40)  # more than are looked at in one go
        for _ in range(5):
            impatient = await come("loose", 60)
            assert len(waiting) == 100
            for guest in impatient:
                guest.cancel()
            await settle()
            waiting.look(0.01)
            assert len(waiting) == 40
        await come("loose", 60)
        with pytest.raises(Refusal, match="too many"):
            await waiting.wait(BENCH.ask("loose"), 0.0, 0.0, 99.0)
        assert not any(guest.done() for guest in patient)

    asyncio.run(run())
