"""Real mock engines for tests: processes on free ports that end with their test."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp

MODEL = "test-model"


class EngineProcess:
    """One engine; `ports` is the line it printed when it listened."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hrl_planner.cli", "mock-engine", "--port", "0"),
                *map(str, options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"no engine: {self.errors()}")
        self.ports: dict[str, Any] = json.loads(line)
        self.url = f"http://127.0.0.1:{self.ports['port']}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(timeout=20)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def engine(*options: object) -> Iterator[EngineProcess]:
    """An engine that is killed when its test is over."""
    running = EngineProcess(*options)
    try:
        yield running
    finally:
        running.close()


async def post(
    session: aiohttp.ClientSession,
    engine: EngineProcess,
    path: str = "/v1/completions",
    **body: Any,
) -> tuple[int, Any]:
    """Status and JSON of a POST."""
    async with session.post(engine.url + path, json=body) as answer:
        return answer.status, await answer.json()


async def stream(
    session: aiohttp.ClientSession,
    engine: EngineProcess,
    path: str = "/v1/completions",
    **body: Any,
) -> list[dict[str, Any]]:
    """Every event of a streamed answer, [DONE] checked and left out."""
    body = {**body, "stream": True}
    async with session.post(engine.url + path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        text = (await answer.read()).decode()
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]
