"""The decision log holds all it takes to ask a policy again, and survives what logs go through."""

from __future__ import annotations

import contextlib
import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.control.decision import Choice, Decider, Decision, decides_pool_by_pool
from hrl_planner.control.decision_log import DecisionLog
from hrl_planner.control.log_lines import ClusterLine, DecisionLine
from hrl_planner.control.log_reader import DecisionLogs
from hrl_planner.control.replay import Again, Instead, Replayer
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner import Plan
from hrl_planner.spec import ClusterSpec
from tests.decisions import MakeSite, Site, site
from tests.networks import write_checkpoint

SPEC = ClusterSpec.load("small")
__all__ = ["site"]  # a fixture


def repeated(*paths: Path, instead: Instead | None = None) -> list[Again]:
    logs = DecisionLogs([str(path) for path in paths])
    return [step.again for step in Replayer(instead).steps(logs) if step.again is not None]


def verdicts(*paths: Path, instead: Instead | None = None) -> list[str]:
    return [again.verdict for again in repeated(*paths, instead=instead)]


@pytest.mark.parametrize("scaler", ["rule", "quota", "hpa"])
def test_every_decision_can_be_made_again(tmp_path: Path, site: MakeSite, scaler: str) -> None:
    where = site(tmp_path / "log", SPEC, allocator="lp", scaler=scaler)
    where.run(30)
    assert len({tuple(d.replicas.values()) for d in where.decisions}) > 1
    assert {d.asked for d in where.decisions} == {"decide", "listen"}
    found = verdicts(tmp_path / "log")
    assert found == ["same"] * len(where.decisions)


def test_so_can_those_of_a_trained_planner_wherever_its_folder_lies(
    tmp_path: Path, site: MakeSite
) -> None:
    checkpoint = write_checkpoint(tmp_path / "there")
    where = site(tmp_path / "log", SPEC, checkpoint=str(checkpoint))
    where.run(30)
    checkpoint.rename(tmp_path / "here")
    assert set(verdicts(tmp_path / "log")) == {"failed"}
    moved = repeated(tmp_path / "log", instead=Instead(checkpoint=str(tmp_path / "here")))
    assert {again.verdict for again in moved} == {"same"}
    assert all(again.logged_policy for again in moved)


def test_a_change_of_the_cluster_or_the_policy_begins_anew_and_a_mode_does_not(
    tmp_path: Path,
    site: MakeSite,
) -> None:
    where = site(tmp_path / "log", SPEC)
    turns = []
    for change in ({}, {"mode": "shadow"}, {"allocator": "lp:headroom=0.2"}):
        policy = where.group.spec.policy.model_copy(update=change)
        spec = where.group.spec.model_copy(update={"policy": policy})
        where.group = where.group.model_copy(update={"spec": spec})
        where.global_round()
        where.now_s += 60.0
        where.global_round()
        where.now_s += 60.0
        turns += [d.turn for d in where.decisions[-2:]]
    assert turns == [0, 1, 2, 3, 0, 1]
    where.restart()
    where.global_round()
    assert where.decisions[-1].turn == 0
    assert set(verdicts(tmp_path / "log")) == {"same"}


def test_a_log_that_begins_later_or_lost_a_line_proves_nothing_until_the_policy_begins_anew(
    tmp_path: Path,
    site: MakeSite,
) -> None:
    whole = tmp_path / "whole"
    where = site(whole, SPEC, scaler="quota")
    for _ in range(8):
        where.global_round()
        where.now_s += 60.0
    where.restart()
    for _ in range(3):
        where.global_round()
        where.now_s += 60.0
    cluster, *rounds = whole.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut"
    cut.write_text(cluster + "".join(rounds[4:]))
    found = verdicts(cut)
    assert set(found) <= {"same", "unsettled"}
    assert found[-3:] == ["same"] * 3
    # A line that says what the policy never answered, after a gap: not held against it.
    forged = json.loads(rounds[6])
    name = next(iter(forged["decision"]["replicas"]))
    forged["decision"]["replicas"][name] += 1
    cut.write_text(cluster + "".join([*rounds[:4], json.dumps(forged) + "\n", *rounds[7:]]))
    assert verdicts(cut)[4] == "unsettled"


def test_a_decision_that_the_policy_did_not_make_is_found(tmp_path: Path, site: MakeSite) -> None:
    path = tmp_path / "log"
    where = site(path, SPEC)
    where.run(7)
    *rest, last = path.read_text().splitlines(keepends=True)
    forged = json.loads(last)
    forged["decision"]["replicas"][forged["name"]] += 1
    path.write_text("".join([*rest, json.dumps(forged) + "\n"]))
    again = repeated(path)
    assert [a.verdict for a in again].count("different") == 1
    assert forged["name"] in again[-1].differences[0]


@pytest.mark.parametrize("mode", ["standby", "failed"])
def test_what_a_planner_decided_that_nothing_came_of_belongs_to_its_memory(
    tmp_path: Path, site: MakeSite, mode: str
) -> None:
    where = site(tmp_path / "log", SPEC)
    name = SPEC.pools[0].name
    for _ in range(4):
        where.follow(name, mode)
        where.now_s += 10.0
    where.run(7)
    entries = list(DecisionLogs([str(tmp_path / "log")]))
    assert [e.round.mode for e in entries[:8]] == [mode] * 8
    assert {e.round.level for e in entries[:8]} == {"global", "local"}
    assert set(verdicts(tmp_path / "log")) == {"same"}


def test_profiles_with_other_numbers_are_named(tmp_path: Path, site: MakeSite) -> None:
    path = tmp_path / "log"
    site(path, SPEC, scaler="quota").run(1)
    cluster, first, *rest = map(json.loads, path.read_text().splitlines())
    cluster["profiles"][SPEC.pools[0].profile] = "0" * 16
    first["decision"]["replicas"][SPEC.pools[0].name] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in (cluster, first, *rest)))
    words = repeated(path)[0].differences
    assert words[0] == f"other numbers here in profile {SPEC.pools[0].profile}"


def test_another_policy_tells_what_it_would_have_done(tmp_path: Path, site: MakeSite) -> None:
    where = site(tmp_path / "log", SPEC, scaler="quota")
    where.run(13)
    instead = repeated(tmp_path / "log", instead=Instead(allocator="static"))
    by_level = {a.decision.choice.level: a for a in instead if a.decision is not None}
    assert by_level["allocator"].verdict == "different"
    assert not by_level["allocator"].logged_policy
    assert by_level["scaler"].verdict == "same" and by_level["scaler"].logged_policy


def test_a_policy_that_fails_begins_anew() -> None:
    decider, seen = Decider(), observation(np.random.default_rng(0))
    lp, oracle = Choice("allocator", "lp"), Choice("allocator", "lp-oracle")
    assert decider.decide(SPEC, lp, seen).turn == 0
    assert decider.decide(SPEC, lp, seen).turn == 1
    with pytest.raises(Exception, match="trace"):
        decider.decide(SPEC, oracle, seen)
    assert decider.decide(SPEC, lp, seen).turn == 0


def observation(rng: np.random.Generator, spec: ClusterSpec = SPEC) -> ClusterObservation:
    pools = rng.random((len(spec.pools), len(POOL_FIELDS)))
    classes = rng.random((len(spec.slo_classes), len(CLASS_FIELDS)))
    return ClusterObservation(1.0, pools, classes)


numbers = st.floats(allow_infinity=False) | st.integers(0, 10**6).map(float) | st.just(float("nan"))


@settings(max_examples=50)
@given(st.data())
def test_what_was_seen_is_read_back_to_the_last_bit(data: st.DataObject) -> None:
    seen = observation(np.random.default_rng(0))
    for rows in (seen.pools, seen.classes):
        rows[:] = data.draw(
            st.lists(numbers, min_size=rows.size, max_size=rows.size).map(
                lambda values, shape=rows.shape: np.array(values).reshape(shape)
            )
        )
    plan = Plan(np.zeros(len(SPEC.pools), np.int64))
    decision = Decision(Choice("scaler", "quota"), "decide", "", 0, SPEC, seen, plan, (), 0.0)
    cluster = ClusterLine.of(SPEC, 0.0)
    line = DecisionLine.of(decision, cluster.hash).model_dump_json(exclude_defaults=True)
    again = DecisionLine.model_validate_json(line).observation(
        ClusterLine.model_validate_json(cluster.model_dump_json())
    )
    assert again.now_s == seen.now_s
    np.testing.assert_array_equal(again.pools, seen.pools)
    np.testing.assert_array_equal(again.classes, seen.classes)


@settings(max_examples=30)
@given(st.sampled_from(["quota", "rule", "thresholds", "hpa", "queue-length"]), st.integers(0, 999))
def test_what_is_written_of_one_pool_is_all_its_policy_looked_at(policy: str, seed: int) -> None:
    """Of policies that decide each pool by its own row; others' rows are not written down."""
    rng, choice = np.random.default_rng(seed), Choice("scaler", policy)
    assert decides_pool_by_pool(choice)
    spec = ClusterSpec.load("reference")  # has tuned thresholds
    whole, alone, cluster = Decider(), Decider(), ClusterLine.of(spec, 0.0)
    name = spec.pools[seed % len(spec.pools)].name
    for turn in range(6):
        seen = loaded(spec, rng, 60.0 * turn)
        made = whole.decide(spec, choice, seen)
        line = DecisionLine.of(made, cluster.hash, name)
        assert set(line.pools) == {name}
        again = alone.decide(spec, choice, line.observation(cluster))
        assert again.replicas[name] == made.replicas[name] == line.replicas[name]


def loaded(spec: ClusterSpec, rng: np.random.Generator, now_s: float) -> ClusterObservation:
    """Pools of a few replicas with loads between nothing and far too much; some unknown."""
    seen = observation(rng, spec)
    pools = seen.pools * 3.0
    for field in ("target_replicas", "quota", "ready", "starting", "draining", "pending"):
        pools[:, POOL_FIELDS.index(field)] = rng.integers(0, 5, len(pools))
    for field in ("waiting", "running", "ttft_p90_ms", "itl_p90_ms", "prompt_tokens_per_s"):
        index = POOL_FIELDS.index(field)
        pools[:, index] *= rng.choice([1.0, 30.0, 1000.0, np.nan], len(pools))
    return ClusterObservation(now_s, pools, seen.classes)


def test_a_policy_that_looks_at_all_pools_is_not_asked_about_one(
    tmp_path: Path, site: MakeSite
) -> None:
    site(tmp_path / "log", SPEC).run(1)
    found = repeated(tmp_path / "log", instead=Instead(scaler="wva"))
    assert [again.verdict for again in found] == ["same", *["failed"] * len(SPEC.pools)]
    assert "wva looks at all pools" in found[-1].differences[0]


@pytest.mark.parametrize("name", ["small", "reference", "large"])
def test_a_cluster_is_read_back_as_it_was(name: str) -> None:
    spec = ClusterSpec.load(name)
    line = ClusterLine.model_validate_json(ClusterLine.of(spec, 0.0).model_dump_json())
    assert line.cluster == spec
    assert line.other_profiles() == []
    assert line.hash == ClusterLine.of(spec, 9.0).hash


def test_every_file_of_a_rotated_log_can_be_read_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = RotatingFileHandler(path, maxBytes=30_000, backupCount=20)
    with contextlib.closing(handler):
        Site(SPEC, DecisionLog(handler, "a", "default")).run(30)
    files = sorted(tmp_path.glob("log*"))
    assert len(files) > 2
    for file in files:
        assert json.loads(file.read_text().splitlines()[0])["kind"] == "cluster"
        assert "failed" not in verdicts(file)
    assert set(verdicts(*files)) == {"same"}


def test_lines_of_others_are_passed_over_and_broken_ones_named(
    tmp_path: Path, site: MakeSite
) -> None:
    path = tmp_path / "log"
    site(path, SPEC).run(7)
    good = path.read_text().splitlines()
    broken = [
        "2026-01-01 12:00:00 INFO global planner small leads",
        good[1][: len(good[1]) // 2],
        '{"format":7,"kind":"round"}',
        '{"format":1,"kind":"round","time":"yesterday"}',
        "{}",
    ]
    text = "\n".join([good[0], *broken, *good[1:], good[-1][:100]])
    path.write_bytes(text.encode() + b"\xff")
    logs = DecisionLogs([str(path)])
    rounds = list(logs)
    assert len(rounds) == len(good) - 1
    assert logs.foreign == 1
    assert [flaw.line for flaw in logs.flaws] == [3, 4, 5, 6, len(good) + 6]
    told = [str(flaw) for flaw in logs.flaws]
    assert all(str(path) in words for words in told)
    assert "format is 7" in told[1] and "time" in told[2] and "cut off" in told[-1]


def test_rounds_of_several_processes_are_told_in_the_order_of_time(
    tmp_path: Path, site: MakeSite
) -> None:
    one, other = site(tmp_path / "a", SPEC, by="a"), site(tmp_path / "b", SPEC, by="b")
    other.now_s += 5.0
    for where in (one, other):
        where.run(7)
    entries = list(DecisionLogs([str(tmp_path / "b"), str(tmp_path / "a")]))
    times = [entry.round.time for entry in entries]
    assert times == sorted(times)
    assert {entry.round.by for entry in entries} == {"a", "b"}
    assert set(verdicts(tmp_path / "a", tmp_path / "b")) == {"same"}


def test_a_full_disk_does_not_stop_a_planner(capsys: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full").open("w", encoding="utf-8")
    where = Site(SPEC, DecisionLog(logging.StreamHandler(full), "a", "default"))
    where.global_round()
    with contextlib.suppress(OSError):
        full.close()
    assert "No space left" in capsys.readouterr().err
