"""`hrl-planner replay-log` on logs of planners that really decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.spec import ClusterSpec
from tests.decisions import opened

SPEC = ClusterSpec.load("small")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "planner.log"
    with opened(path, SPEC) as site:
        site.run(13)
    return path


def replay(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["replay-log", *map(str, args)])
    return done.exit_code, done.stdout, done.stderr


def test_a_log_is_explained_and_reproduced(log: Path) -> None:
    code, out, err = replay(log)
    assert code == 0, err
    assert "the same again" in err
    assert "lp: planned" in out and "decode-h100" in out and "GPU worth" in out


def test_what_is_shown_can_be_chosen(log: Path) -> None:
    _, out, err = replay(log, "--pool", "decode-l40s", "--last", 3)
    assert "decode-l40s" in out and "decode-h100" not in out and "prefill" not in out
    assert out.count("rule") == 2 and out.count("global small") == 1
    assert err.startswith("55 decisions: 55 the same")  # all are replayed all the same
    _, late, _ = replay(log, "--since", "15s", "--pool", "decode-l40s")
    assert late.count("local decode-l40s") == 2
    _, none, _ = replay(log, "--since", "2030-01-01T00:00Z")
    assert "decode" not in none


def test_another_policy_is_no_failure(log: Path) -> None:
    code, out, err = replay(log, "--policy", "static+quota")
    assert code == 0
    assert "otherwise, by the other policy" in err and "otherwise: " in out


def test_decisions_as_json_have_names_and_what_came_out(log: Path) -> None:
    _, out, _ = replay(log, "--json", "--last", 1)
    (line,) = map(json.loads, out.splitlines())
    assert line["decision"]["pools"]["decode-l40s"]["ready"] >= 1
    assert line["again"]["verdict"] == "same"
    assert line["again"]["replicas"] == line["decision"]["replicas"]


def test_what_is_not_reproduced_is_told_with_file_and_line(log: Path, tmp_path: Path) -> None:
    *rest, last = log.read_text().splitlines()
    forged: dict[str, Any] = json.loads(last)
    forged["decision"]["replicas"][forged["name"]] += 1
    other = tmp_path / "forged.log"
    other.write_text("\n".join([*rest, json.dumps(forged), last[:200]]))
    code, _, err = replay(other)
    assert code == 1
    assert f"not reproduced: {other}:{len(rest) + 1}: local {forged['name']}" in err
    assert f"unreadable: {other}:{len(rest) + 2}: no JSON, the last line: it was cut off" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.log"], "nowhere.log: No such file"),
        (["LOG", "--since", "yesterday"], "--since yesterday"),
        (["LOG", "--policy", "lp", "--checkpoint", "x"], "only one of the two"),
        (["EMPTY"], "no decision in it"),
        (["LOG", "--policy", "magic"], "unknown policy 'magic'"),
        (["LOG", "--policy", "lp+magic"], "unknown policy 'magic'"),
        (["LOG", "--checkpoint", "nowhere"], "no checkpoint ships for spec 'nowhere'"),
    ],
)
def test_a_wrong_question_is_one_line_and_status_2(
    log: Path, tmp_path: Path, args: list[str], words: str
) -> None:
    empty = tmp_path / "empty.log"
    empty.write_text("started\n")
    known = {"LOG": str(log), "EMPTY": str(empty)}
    code, _, err = replay(*(known.get(arg, arg) for arg in args))
    assert code == 2
    assert words in err
