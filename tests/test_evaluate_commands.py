"""The commands that evaluate: stopped, killed, with good and with bad arguments."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def start_evaluation(folder):
    """An evaluation of hours over two workers, in a process group of its own, some runs done."""
    command = [sys.executable, "-m", "hrl_planner.cli", "evaluate", "--spec", "small"]
    command += ["--scenario", "cold-start-ramp", "--policy", "static", "--policy", "hpa"]
    command += ["--seeds", "200", "--until", "300", "-j", "2", "--out", str(folder)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A background shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def assert_nobody_is_left(group):
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.killpg(group, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_keeps_what_is_finished_and_leaves_nobody_behind(tmp_path, how):
    process = start_evaluation(tmp_path)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "are kept in" in output and "Traceback" not in output
    assert list(tmp_path.glob("cells/*.json"))
    assert_nobody_is_left(process.pid)


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = start_evaluation(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert_nobody_is_left(process.pid)
    for cell in tmp_path.glob("cells/*.json"):
        json.loads(cell.read_text())


def cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hrl_planner.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_commands_print_tables_and_say_where_the_report_is(tmp_path):
    workload = [
        "--spec",
        "small",
        "--scenario",
        "cold-start-ramp",
        "--load",
        "0.05",
        "--until",
        "60",
    ]
    one = cli("simulate", *workload, "--policy", "static", "--out", str(tmp_path / "run"))
    assert one.returncode == 0, one.stderr
    assert "by class" in one.stdout and "by pool" in one.stdout
    assert (tmp_path / "run" / "requests.parquet").exists()
    many = cli(
        "evaluate", *workload, "--policy", "static", "--policy", "hpa", "--seeds", "1", "-j", "1",
        "--out", str(tmp_path / "ev"),
    )  # fmt: skip
    assert many.returncode == 0, many.stderr
    assert f"report: {tmp_path / 'ev' / 'report.html'}" in many.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate"],
        ["simulate", "--scenario", "nope"],
        ["simulate", "--scenario", "cold-start-ramp", "--trace", "x.csv"],
        ["simulate", "--scenario", "cold-start-ramp", "--policy", "nope"],
        ["evaluate", "--scenario", "cold-start-ramp", "--policy", "nope", "--out", "OUT"],
        ["evaluate", "--trace", "/no/such.csv", "--policy", "hpa", "--out", "OUT"],
        [
            "evaluate",
            "--scenario",
            "cold-start-ramp",
            "--policy",
            "hpa",
            "--spec",
            "x",
            "--out",
            "OUT",
        ],
    ],
    ids=lambda a: " ".join(a[:5]),
)
def test_bad_arguments_end_in_a_message(arguments, tmp_path):
    from typer.testing import CliRunner

    from hrl_planner.cli import app

    done = CliRunner().invoke(app, [a.replace("OUT", str(tmp_path / "out")) for a in arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert done.output.strip()
