"""Many seeds side by side: each as it would be alone, none lost with another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.planner.checkpoint import load
from tests.tiny_training import ALLOCATOR, TINY, run, tiny


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_many_seeds_train_side_by_side(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "ray":
        request.getfixturevalue("ray_alone")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "stages": [{**ALLOCATOR, "steps": 15}]}))
    arguments = ["train", "--config", str(path), "--out", str(tmp_path / "out"), "--seeds", "2"]
    done = CliRunner().invoke(app, [*arguments, "--backend", backend])
    assert done.exit_code == 0, done.output
    made = [load(tmp_path / "out" / f"seed-{seed}" / "checkpoint") for seed in range(2)]
    assert [m.manifest.training["config"]["seed"] for m in made] == [0, 1]
    alone = run(tiny(stages=[{**ALLOCATOR, "steps": 15}], seed=1, threads=1), tmp_path / "alone")
    assert alone is not None
    np.testing.assert_array_equal(load(alone).allocator.net, made[1].allocator.net)


@pytest.mark.slow
def test_a_seed_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**TINY, "stages": [{**ALLOCATOR, "steps": 15}]}))
    out.mkdir()
    (out / "seed-0").write_text("a file where a folder should be")
    arguments = ["train", "--config", str(path), "--out", str(out), "--seeds", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert "seed 0: failed: FileExistsError" in done.output
    assert load(out / "seed-1" / "checkpoint").manifest.training["config"]["seed"] == 1


def test_many_seeds_of_a_wrong_config_are_refused_before_one_begins(tmp_path: Path) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**TINY, "prior": "lpp"}))
    arguments = ["train", "--config", str(path), "--out", str(out), "--seeds", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "prior: unknown policy 'lpp'" in done.output
    assert not out.exists()


def alive(group: int) -> list[str]:
    """Return the processes of a group that have not ended, whether or not anyone noticed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            name, _, rest = path.read_text().rpartition(")")
            state, _, its_group, *_ = rest.split()
            if int(its_group) == group and state != "Z":
                found.append(name)
    return found


@pytest.mark.slow
def test_an_interrupt_ends_all_seeds_at_once(tmp_path: Path) -> None:
    path, out, errors = tmp_path / "config.yaml", tmp_path / "out", tmp_path / "stderr"
    path.write_text(yaml.safe_dump({**TINY, "stages": [{**ALLOCATOR, "steps": 150000}]}))
    arguments = ["train", "--config", str(path), "--out", str(out), "--seeds", "2"]
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "hrl_planner.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            # A group of its own, as a terminal's Ctrl-C reaches parent and workers alike.
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline_s = time.monotonic() + 240.0
    while len(list(out.glob("seed-*/status.json"))) < 1 and time.monotonic() < deadline_s:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, errors.read_text()
    assert "Traceback" not in errors.read_text()
    assert list(out.glob("seed-*/stage-1-allocator/state.pt"))
    deadline_s = time.monotonic() + 10.0  # for what only clears up
    while alive(process.pid) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert alive(process.pid) == []
