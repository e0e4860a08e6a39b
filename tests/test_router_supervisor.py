"""The supervisor as a real process over shell scripts: deaths, signals, crash loops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.toy_router import ROOT, eventually

# Each life of a child adds its pid to a file of its name.
LIVES = "echo $$ >> {name}; exec sleep 600"
QUICK = {"first_pause_s": 0.02, "longest_pause_s": 0.1}
NO_DRAIN = {"drain_s": 0.0}


@dataclass
class Supervised:
    folder: Path
    process: asyncio.subprocess.Process
    log: Path

    def pids(self, name: str) -> list[int]:
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def status(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)

    def said(self) -> str:
        return self.log.read_text()


@asynccontextmanager
async def supervised(
    folder: Path, *, ready: dict[str, str] | None = None, patience: Any = None, **children: str
) -> AsyncIterator[Supervised]:
    said = {
        "children": {
            name: f"cd {folder}; {script.format(name=name)}" if script else ""
            for name, script in children.items()
        },
        "patience": {**QUICK, **(patience or {})},
        "ready": {name: str(folder / path) for name, path in (ready or {}).items()},
        "drained": str(folder / "drained"),
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.supervised", json.dumps(said)),
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    found = Supervised(folder, process, log)
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_dies_is_started_again_and_the_other_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, fragile=LIVES, steady=LIVES) as it:
            await eventually(lambda: it.pids("fragile") and it.pids("steady"))
            os.kill(it.pids("fragile")[0], signal.SIGKILL)
            await eventually(lambda: len(it.pids("fragile")) == 2)
            (steady,) = it.pids("steady")
            assert is_alive(steady)
            assert "fragile died after" in it.said()
            assert "killed by SIGKILL; starting it again in 0.02 s" in it.said()

    asyncio.run(scenario())


def test_a_crash_loop_ends_the_whole_with_status_1(tmp_path: Path) -> None:
    async def scenario() -> None:
        patience = {"deaths": 3}
        async with supervised(
            tmp_path, patience=patience, broken="echo x >> tries; exit 7", steady=LIVES
        ) as it:
            await eventually(lambda: "a child is lost: draining" in it.said() and it.pids("steady"))
            assert is_alive(it.pids("steady")[0])
            (tmp_path / "drained").touch()
            assert await it.status() == 1
            assert (tmp_path / "tries").read_text().split() == ["x"] * 3
            assert "broken died 3 times in a row" in it.said()
            assert "exit status 7; giving up" in it.said()
            assert not any(is_alive(pid) for pid in it.pids("steady"))

    asyncio.run(scenario())


def test_a_child_that_was_given_bad_input_ends_the_whole_at_once_with_status_2(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with supervised(
            tmp_path, ready={"picky": "never"}, patience=NO_DRAIN, picky="echo x >> tries; exit 2"
        ) as it:
            assert await it.status() == 2
            assert (tmp_path / "tries").read_text().split() == ["x"]
            assert "picky cannot start: exit status 2; giving up" in it.said()

    asyncio.run(scenario())


def test_a_child_that_has_been_ready_is_started_again_whatever_its_status(tmp_path: Path) -> None:
    script = "echo $$ >> {name}; touch is-ready; sleep 0.3; exit 2"

    async def scenario() -> None:
        async with supervised(tmp_path, ready={"once": "is-ready"}, once=script) as it:
            await eventually(lambda: len(it.pids("once")) == 3)
            assert it.process.returncode is None

    asyncio.run(scenario())


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, patience={"deaths": 2, **NO_DRAIN}, absent="") as it:
            assert await it.status() == 1
            assert "/no/such/program: No such file or directory" in it.said()

    asyncio.run(scenario())


def test_a_child_that_never_becomes_ready_counts_as_dying(tmp_path: Path) -> None:
    async def scenario() -> None:
        patience = {"deaths": 2, "ready_s": 0.2, **NO_DRAIN}
        async with supervised(
            tmp_path, ready={"stuck": "never"}, patience=patience, stuck=LIVES
        ) as it:
            assert await it.status() == 1
            assert "not ready within 0.2 s, killed" in it.said()
            assert len(it.pids("stuck")) == 2

    asyncio.run(scenario())


def test_a_long_life_ends_a_row_of_deaths(tmp_path: Path) -> None:
    async def scenario() -> None:
        patience = {"deaths": 2, "steady_s": 0.2}
        async with supervised(
            tmp_path, patience=patience, mortal="echo $$ >> mortal; exec sleep 0.3"
        ) as it:
            await eventually(lambda: len(it.pids("mortal")) == 4)
            assert it.process.returncode is None

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_then_ends_the_children(tmp_path: Path, number: signal.Signals) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, child=LIVES) as it:
            await eventually(lambda: it.pids("child"))
            it.process.send_signal(number)
            await eventually(lambda: f"{number.name}: draining" in it.said())
            # The children work on; one that dies now is still needed.
            os.kill(it.pids("child")[0], signal.SIGKILL)
            await eventually(lambda: len(it.pids("child")) == 2)
            assert is_alive(it.pids("child")[1])
            (tmp_path / "drained").touch()
            assert await it.status() == 0
            assert not any(is_alive(pid) for pid in it.pids("child"))

    asyncio.run(scenario())


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; echo $$ >> {name}; while :; do sleep 1; done"

    async def scenario() -> None:
        async with supervised(tmp_path, child=stubborn) as it:
            await eventually(lambda: it.pids("child"))
            it.process.terminate()
            await eventually(lambda: "draining" in it.said())
            it.process.terminate()
            assert await it.status() == 0
            assert "stopping now" in it.said()
            assert not is_alive(it.pids("child")[0])

    asyncio.run(scenario())


def test_a_drain_that_lasts_too_long_and_a_child_that_will_not_go_are_cut_short(
    tmp_path: Path,
) -> None:
    stubborn = "trap '' TERM; echo $$ >> {name}; while :; do sleep 1; done"

    async def scenario() -> None:
        patience = {"drain_s": 0.1, "stop_s": 0.1}
        async with supervised(tmp_path, patience=patience, child=stubborn) as it:
            await eventually(lambda: it.pids("child"))
            it.process.terminate()
            assert await it.status() == 0
            assert "not drained within 0.1 s" in it.said()
            assert "child did not stop within 0.1 s: killed" in it.said()

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing, on Linux")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, one=LIVES, two=LIVES) as it:
            await eventually(lambda: it.pids("one") and it.pids("two"))
            it.process.kill()
            await it.process.wait()
            await eventually(lambda: not is_alive(it.pids("one")[0]))
            await eventually(lambda: not is_alive(it.pids("two")[0]))

    asyncio.run(scenario())
