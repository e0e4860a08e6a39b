"""What the comparison with other routers stands on: the cheap engine, Envoy alone, peers found."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.dynamo.client import PYTHON_VARIABLE as DYNAMO_PYTHON
from benchmarks.router import dynamo_path, envoy_alone, peers, upstream
from benchmarks.router.loads import Shape, closed_loop
from benchmarks.router.processes import Stack, StartError


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_envoy_alone_carries_whole_streams(api: str) -> None:
    pytest.importorskip("envoy")
    shape = Shape(isl=10, osl=7, api=api)  # type: ignore[arg-type]
    with (
        upstream.running(2, itl_ms=1.0) as engines,
        envoy_alone.serving(engines) as (stack, url),
    ):
        run = closed_loop(
            url, upstream.MODEL, shape, concurrency=4, duration_s=0.3, cpu_s=stack.cpu_s
        )
    assert run.failed == 0, run.first_error
    assert run.tokens_per_s == pytest.approx(7 * run.requests_rps)


def test_what_is_not_installed_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(DYNAMO_PYTHON, str(tmp_path / "python"))
    monkeypatch.setenv(peers.PYTHON_VARIABLE, str(tmp_path / "python"))
    path = dynamo_path.measure()
    assert isinstance(path, str) and "make dynamo-venv" in path
    for found in peers.measure(["127.0.0.1:1"]).values():
        assert isinstance(found, str) and peers.PYTHON_VARIABLE in found


def test_a_program_that_ends_early_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="broken ended: no such thing"), Stack(tmp_path) as stack:
        stack.start("broken", ["sh", "-c", "echo no such thing; exit 1"])
        stack.wait_for("http://127.0.0.1:9/")
