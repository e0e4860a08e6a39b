"""The pipe to the interpreter Dynamo is installed in.

One server per process of ours: starting it takes three seconds, most of them imports, and every
policy of the process shares it, each with a session of its own. It ends with its pipe.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from hrl_planner.errors import PolicyError

PYTHON_VARIABLE = "HRL_PLANNER_DYNAMO_PYTHON"
DEFAULT_PYTHON = Path("dynamo-venv/bin/python")

_SERVER = Path(__file__).with_name("server.py")
_ROOT = _SERVER.parents[2]
_HOW = (
    "make one with `make dynamo-venv`, or by hand: `python3.11 -m venv dynamo-venv && "
    "dynamo-venv/bin/pip install --no-deps -r benchmarks/dynamo_requirements.txt`; "
    f"one at another place is named by {PYTHON_VARIABLE}=/path/to/python"
)

Json = dict[str, Any]


def find_python() -> Path:
    """Return the interpreter that should have Dynamo.

    Raises:
        PolicyError: if there is none, telling how to make one.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    places = [Path(named)] if named else [DEFAULT_PYTHON, _ROOT / DEFAULT_PYTHON]
    for place in places:
        if place.is_file():
            return place.absolute()
    raise PolicyError(f"policy dynamo: no interpreter {places[0]} with ai-dynamo; {_HOW}")


class Connection:
    """A running server.

    Args:
        python: the interpreter it runs under.
    """

    def __init__(self, python: Path) -> None:
        """Start the server and wait until Dynamo is imported."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        # Its matrices are tiny: threads would cost more than they give.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(python), str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C is for us; it ends with its pipe
        )
        self.close = weakref.finalize(self, _stop, self._process, self._errors)
        if not self._read():
            raise PolicyError(
                f"policy dynamo: {python} cannot run Dynamo's planner: {self._last_words()}; {_HOW}"
            )

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def ask(self, request: Json) -> Json:
        """Send a request and return the answer.

        Raises:
            PolicyError: if Dynamo failed, or the server is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._read()
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise PolicyError(f"policy dynamo: its server ended: {self._last_words()}")
        if "error" in answer:
            raise PolicyError(f"policy dynamo: Dynamo failed: {answer['error']}")
        return answer

    def _read(self) -> Json | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else None

    def _last_words(self) -> str:
        """Return the last line of a server that ended, and release what it held."""
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else f"exit status {self._process.returncode}"


@cache
def _connection(python: Path, _process_id: int) -> Connection:
    return Connection(python)


def connect(python: Path) -> Connection:
    """Return this process's server, a new one if the last has ended."""
    connection = _connection(python, os.getpid())
    if not connection.alive:
        _connection.cache_clear()
        connection = _connection(python, os.getpid())
    return connection


class Session:
    """One cluster at the server.

    Args:
        connection: to the server.
        description: see `deployment.describe`.
    """

    def __init__(self, connection: Connection, description: Json) -> None:
        """Start planners and arbiters."""
        self._connection = connection
        self._number: int = connection.ask({"start": description})["session"]
        self.close = weakref.finalize(self, _end, connection, self._number)

    def tick(self, now_s: float, pools: list[Json]) -> Json:
        """Let time come to `now_s`; return `replicas` and `why` per pool."""
        request = {"session": self._number, "tick": {"now_s": now_s, "pools": pools}}
        return self._connection.ask(request)


def _stop(process: subprocess.Popen[str], errors: IO[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, errors):
        if pipe is not None:
            # What was not written can be lost: nobody reads it any more.
            with suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def _end(connection: Connection, number: int) -> None:
    if connection.alive:
        connection.ask({"end": number})
