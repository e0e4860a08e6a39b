"""`hrl-planner load` as a person meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hrl_planner import cli
from hrl_planner.workload import write_trace
from tests.builders import trace
from tests.load_upstream import Answer, always, in_turn, upstream

runner = CliRunner()


def run(*words: str) -> tuple[int, str, str]:
    result = runner.invoke(cli.app, ["load", *words])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, repr(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_a_closed_loop_prints_a_table_and_writes_its_requests(tmp_path: Path) -> None:
    out = tmp_path / "new" / "requests.parquet"
    with upstream() as server:
        code, stdout, _ = run(
            *(server.url, "--concurrency", "2", "--requests", "6", "--isl", "10", "--osl", "3"),
            *("--ttft", "60000", "--itl", "60000", "--out", str(out)),
        )
    assert code == 0
    assert "SLO attainment" in stdout and "100.0 %" in stdout and "6 200" in stdout
    rows = pd.read_parquet(out)
    assert len(rows) == 6 and rows.attained.all() and (rows.tokens == 3).all()
    assert {request.body["model"] for request in server.requests[1:]} == {"served-model"}


def test_json_is_one_object_with_nothing_that_json_lacks(tmp_path: Path) -> None:
    out = tmp_path / "requests.jsonl"
    with upstream(in_turn(Answer(), Answer(), Answer(status=503))) as server:
        code, stdout, _ = run(
            *(server.url, "--rate", "20", "--duration", "0.5", "--osl", "2"),
            *("--json", "--out", str(out)),
        )
    assert code == 0
    summary = json.loads(stdout)
    # The first of all was the question for the model's name.
    assert summary["outcomes"]["200"] == 1
    assert summary["rows"][0]["ttft_p50_ms"] is None
    assert len(out.read_text().splitlines()) == summary["rows"][0]["offered"]


def test_a_trace_file_gets_the_classes_of_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    write_trace(trace(np.arange(8) * 0.1, 100, 2), path)
    with upstream() as server:
        code, stdout, _ = run(
            *(server.url, "--trace", str(path), "--spec", "small", "--speed", "10", "--json"),
        )
    assert code == 0
    rows = json.loads(stdout)["rows"]
    assert rows[0]["class"] == "all" and len(rows) > 1
    assert rows[0]["offered"] == 8
    assert "nvext" in server.requests[-1].body


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("http://127.0.0.1:9",), "nothing answers"),
        (("localhost",), "url 'localhost'"),
        (("http://127.0.0.1:9", "--out", "a.txt"), "must end in"),
        (("http://127.0.0.1:9", "--requests", "5"), "closed loop"),
        (("http://127.0.0.1:9", "--concurrency", "0"), "at least 1"),
        (("http://127.0.0.1:9", "--concurrency", "1", "--speed", "2"), "no arrival times"),
        (("http://127.0.0.1:9", "--model", "m", "--speed", "0"), "speed 0"),
        (("http://127.0.0.1:9", "--model", "m", "--prompt", "ids", "--api", "chat"), "token ids"),
        (("http://127.0.0.1:9", "--model", "m", "--header", "x"), "Name: value"),
        (("http://127.0.0.1:9", "--rate", "inf"), "rate inf"),
        (("http://127.0.0.1:9", "--rate", "1e12"), "6e+13 requests, at most 50000000"),
        (("http://127.0.0.1:9", "--rate", "1", "--isl", "3000000000"), "isl 3000000000: at most"),
        (("http://127.0.0.1:9", "--rate", "1", "--osl", "3000000000"), "osl 3000000000: at most"),
        (("http://127.0.0.1:9", "--model", "m", "--vocabulary", "999"), "vocabulary 999: 1000 to"),
        (("http://127.0.0.1:9", "--model", "m", "--vocabulary", "9999999"), "vocabulary 9999999"),
        (("http://127.0.0.1:9", "--scenario", "nope"), "unknown scenario"),
        (("http://127.0.0.1:9", "--scenario", "diurnal-mix", "--trace", "x"), "not both"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: tuple[str, ...], message: str) -> None:
    code, _, stderr = run(*words)
    assert code == 2
    assert message in " ".join(stderr.split())


@pytest.mark.parametrize("loop", [("--rate", "1"), ("--concurrency", "1")])
@pytest.mark.parametrize("duration", ["-1", "0", "nan", "inf"])
def test_a_run_lasts_for_a_time_there_can_be(loop: tuple[str, ...], duration: str) -> None:
    code, _, stderr = run("http://127.0.0.1:9", "--model", "m", *loop, "--duration", duration)
    assert code == 2
    assert stderr == f"error: duration {float(duration)}: a finite number above 0\n"


def test_ctrl_c_keeps_what_was_measured() -> None:
    with upstream(always(Answer())) as server:
        command = [
            *(sys.executable, "-m", "hrl_planner.cli", "load", server.url, "--model", "m"),
            *("--rate", "50", "--duration", "600", "--osl", "2", "--json"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            assert server.answered.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    summary = json.loads(stdout)
    assert summary["outcomes"]["200"] >= 1
    assert any("was stopped" in warning for warning in summary["warnings"])
