"""Training: from a config to a checkpoint, stopped and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from agents.days import FIRST_TRAINING_DAY, FIRST_VALIDATION_DAY
from agents.train.paired import PairedEnv, SharedDays
from agents.train.randomise import RandomEpisodes
from agents.train.run import train
from agents.train.stage import make_env, make_training
from agents.train.state import STATE_FILE
from envs.episodes import EpisodeOptions
from envs.global_allocator import GlobalLevel
from hrl_planner.budget import BudgetArrays
from hrl_planner.cli import app
from hrl_planner.errors import TrainingError
from hrl_planner.planner.checkpoint import load
from hrl_planner.spec import ClusterSpec
from tests.tiny_training import ALLOCATOR, SCALER, TINY, run, tiny, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "run"
    third = {**SCALER, "quotas": "learned", "steps": 60}
    run(tiny(stages=[SCALER, ALLOCATOR, third]), folder)
    return folder


def test_three_stages_end_in_a_checkpoint_of_both_levels(finished: Path) -> None:
    checkpoint = load(finished / "checkpoint")
    manifest = checkpoint.manifest
    assert checkpoint.scaler is not None
    assert manifest.training["config"]["seed"] == 0
    assert [s["level"] for s in manifest.training["stages"]] == ["scaler", "allocator", "scaler"]
    assert manifest.reward_normaliser is not None
    for low, high in (*manifest.ranges.pools.values(), *manifest.ranges.classes.values()):
        assert np.isfinite(low) and low <= high
    assert manifest.metrics["stage_2_final_gain"] >= 0.0
    assert manifest.metrics["stage_2_best_score"] >= manifest.metrics["stage_2_prior_score"]
    assert "tiny" in (finished / "checkpoint" / "README.md").read_text()
    assert list(finished.glob("stage-2-allocator/events.out.tfevents.*"))


def test_the_log_has_what_every_update_came_to_the_last_included(finished: Path) -> None:
    folder = finished / "stage-1-scaler"
    log = EventAccumulator(str(folder))
    log.Reload()
    update = SCALER["n_envs"] * SCALER["n_steps"]
    history = torch.load(folder / STATE_FILE, weights_only=True)["progress"]["history"]
    judged = [(event.step, event.value) for event in log.Scalars("validation/score")]
    assert judged == [(update * int(i), pytest.approx(score)) for i, score in history[1:]]
    learnt = {tag: [event.step for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    for tag in ("validation/gain", "train/value_loss", "train/approx_kl", "time/fps"):
        assert learnt[tag] == [update, 2 * update], tag


def test_the_checkpoint_can_be_evaluated(finished: Path) -> None:
    path = finished / "checkpoint"
    arguments = ["simulate", "--spec", "small", "--scenario", "steady-no-flap", "--until", "120"]
    result = CliRunner().invoke(app, [*arguments, "--policy", f"learned:path={path}"])
    assert result.exit_code == 0, result.output


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """Stop after the second of four updates, continue, and compare with a run never stopped."""
    config = tiny()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole, only=1)

    class Stop(Exception):
        pass

    def stop(index: int, stage: object, progress: Any, updates: int) -> None:
        if progress.update == 1:
            raise Stop

    with pytest.raises(Stop):
        run(config, parts, only=1, on_progress=stop)
    np.random.seed(99)
    torch.manual_seed(99)
    run(config, parts, only=1, resume=True)
    one, other = (weights(folder / "stage-1-scaler") for folder in (whole, parts))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    stage = [{**ALLOCATOR, "steps": 15}]
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tiny(stages=stage, seed=seed), tmp_path / folder)
    a, b, c = (weights(tmp_path / name / "stage-1-allocator") for name in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


def test_the_actor_rests_while_the_critic_warms_up(tmp_path: Path) -> None:
    run(tiny(stages=[{**ALLOCATOR, "steps": 15, "critic_only": 1}]), tmp_path / "run")
    state = weights(tmp_path / "run" / "stage-1-allocator")
    assert np.all(state["actor.head_2.weight"] == 0.0)
    fresh = {name for name in state if name.startswith("critic.head.2.bias")}
    assert all(np.any(state[name] != 0.0) for name in fresh)


def test_a_flat_policy_trains_and_runs_without_local_planners(tmp_path: Path) -> None:
    flat = {**ALLOCATOR, "level": "flat", "steps": 15}
    path = run(tiny(stages=[flat]), tmp_path / "run")
    assert path is not None and load(path).manifest.head == "flat"
    arguments = ["simulate", "--spec", "small", "--scenario", "steady-no-flap", "--until", "90"]
    result = CliRunner().invoke(app, [*arguments, "--policy", f"learned:path={path}"])
    assert result.exit_code == 0, result.output


def test_episodes_of_training_and_validation_never_share_a_day() -> None:
    spec, generator = ClusterSpec.load("small"), np.random.default_rng(0)
    config = tiny().randomise
    for validation in (False, True):
        source = RandomEpisodes(spec, config, validation)
        for _ in range(8):
            episode = source(EpisodeOptions(), generator)
            assert (episode.seed < FIRST_TRAINING_DAY) == validation
            assert episode.seed >= FIRST_VALIDATION_DAY
            arrays = BudgetArrays.from_spec(episode.spec)
            assert arrays.fits(np.array([p.initial for p in episode.spec.pools]))
            assert {p.role for p in episode.spec.pools} == {p.role for p in spec.pools}
            assert episode.truth is not None
            assert [p.name for p in episode.truth.pools] == [p.name for p in episode.spec.pools]


def test_a_twin_shares_day_and_luck_so_that_action_0_gains_nothing() -> None:
    config = tiny(randomise={**TINY["randomise"], "durations_s": [180.0], "tightness": [1.0, 1.0]})
    env, twin = (
        make_env(config, GlobalLevel("lp"), 2, future=False, validation=False) for _ in range(2)
    )
    paired = PairedEnv(env, twin)
    paired.seed(5)
    paired.reset()
    idle = np.zeros((2, *(env.action_space.shape or ())), np.float32)
    gains = [paired.step(idle)[1] for _ in range(5)]  # over the end of the first episodes
    np.testing.assert_array_equal(gains, np.zeros((5, 2)))
    gains = [paired.step(idle - 1.0)[1] for _ in range(4)]
    assert np.any(np.array(gains) != 0.0)


def test_clusters_that_share_a_day_are_the_same_but_for_their_agents() -> None:
    stage = {**ALLOCATOR, "n_envs": 4, "per_day": 2, "paired": True}
    config = tiny(stages=[stage], randomise={**TINY["randomise"], "durations_s": [180.0]})
    env, twin = make_training(config, config.stages[0], GlobalLevel("lp"))
    assert twin is not None
    assert (env.num_envs, twin.num_envs) == (4, 2)
    paired = PairedEnv(env, twin)
    paired.seed(5)
    first = np.asarray(paired.reset())
    traces = [env._episodes.run(i).episode.trace for i in range(4)]
    assert traces[0] is traces[1] is twin._episodes.run(0).episode.trace
    assert traces[2] is traces[3] is twin._episodes.run(1).episode.trace
    assert traces[0] is not traces[2]
    np.testing.assert_array_equal(first[0::2], first[1::2])
    action = np.zeros((4, *(env.action_space.shape or ())), np.float32)
    gains = [paired.step(action)[1] for _ in range(4)]  # over the end of the first episodes
    np.testing.assert_array_equal(gains, np.zeros((4, 4)))
    action[1] = -1.0
    gains = [paired.step(action)[1] for _ in range(5)]
    assert np.any(np.array(gains)[:, 1] != 0.0)
    np.testing.assert_array_equal(np.array(gains)[:, [0, 2, 3]], np.zeros((5, 3)))


def test_days_are_made_once_and_leave_the_generator_as_making_them_does() -> None:
    spec = ClusterSpec.load("small")
    source = RandomEpisodes(spec, tiny().randomise, validation=False)
    shared = SharedDays(source, keep=1)
    ours, theirs, again = (np.random.default_rng(3) for _ in range(3))
    episode = shared(EpisodeOptions(), ours)
    plain = source(EpisodeOptions(), theirs)
    assert shared(EpisodeOptions(), again) is episode
    np.testing.assert_array_equal(episode.trace.arrival_s, plain.trace.arrival_s)
    assert ours.random() == theirs.random() == again.random()
    assert shared(EpisodeOptions(), ours) is not episode
    assert shared(EpisodeOptions(), np.random.default_rng(3)) is not episode  # forgotten


def test_ample_clusters_have_more_gpus_for_less_load() -> None:
    spec, generator = ClusterSpec.load("reference"), np.random.default_rng(4)
    fixed = {"tightness": [1.0, 1.0], "load": [0.5, 0.5], "as_told": 1.0}
    requests, per_request = {}, {}
    for ample in (0.0, 0.5, 1.0):
        changes = {**TINY["randomise"], **fixed, "ample": ample}
        source = RandomEpisodes(spec, tiny(randomise=changes).randomise, validation=False)
        episodes = [source(EpisodeOptions(), generator) for _ in range(24)]
        requests[ample] = np.array([len(e.trace.arrival_s) for e in episodes])
        held = np.array([sum(e.spec.budget.gpus.values()) for e in episodes])
        per_request[ample] = held / requests[ample]
    plain = per_request[0.0].max()
    assert 0.2 < (per_request[0.5] > 1.2 * plain).mean() < 0.8
    assert (per_request[1.0] > 1.2 * plain).mean() > 0.8
    assert per_request[1.0].max() < 4.5 * plain
    assert requests[1.0].min() < 0.4 * requests[0.0].min()
    assert requests[1.0].max() < 1.1 * requests[0.0].max()


def test_the_budget_drawn_is_relative_to_what_a_scenario_needs() -> None:
    spec = ClusterSpec.load("reference")
    held = []
    for needs in ({}, {"steady-no-flap": 0.5}):
        changes = {"tightness": [1.0, 1.0], "load": [0.5, 0.5], "needs": needs, "as_told": 1.0}
        changes["loads"] = {"steady-no-flap": 2.0}
        config = tiny(randomise={**TINY["randomise"], **changes}).randomise
        episode = RandomEpisodes(spec, config, False)(EpisodeOptions(), np.random.default_rng(1))
        held.append(episode.spec.budget.gpus)
    assert held[0] == spec.budget.gpus
    assert held[1] == {name: gpus // 2 for name, gpus in held[0].items()}


def test_one_call_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    config = tiny(stages=[{**ALLOCATOR, "steps": 15}])
    refused = []

    def join(*_: Any) -> None:
        with pytest.raises(TrainingError, match="another call works in it") as caught:
            run(config, tmp_path, resume=True)
        refused.append(caught)

    train(config, tmp_path, resume=False, on_progress=join)
    assert refused and (tmp_path / "checkpoint").is_dir()


def test_a_folder_keeps_its_run(finished: Path, tmp_path: Path) -> None:
    before = weights(finished / "stage-1-scaler")
    with pytest.raises(TrainingError, match="continue it with --resume"):
        run(tiny(), finished)
    with pytest.raises(TrainingError, match="was begun with another config"):
        run(tiny(seed=5), finished, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(TrainingError, match=r"not empty and holds no config\.yaml"):
        run(tiny(), tmp_path / "other")
    after = weights(finished / "stage-1-scaler")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_damaged_state_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    config = tiny(stages=[{**ALLOCATOR, "steps": 15}])
    run(config, tmp_path / "run")
    path = tmp_path / "run" / "stage-1-allocator" / STATE_FILE
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"cannot be read.*delete the stage's folder"):
        run(config, tmp_path / "run", resume=True)


def test_the_command_trains_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "stages": [{**ALLOCATOR, "steps": 15}]}))
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["train", "--config", str(path), "--out", out])
    assert done.exit_code == 0, done.output
    assert "checkpoint:" in done.output
    again = CliRunner().invoke(app, ["train", "--config", str(path), "--out", out])
    assert again.exit_code == 2
    missing = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "none.yaml")])
    assert missing.exit_code == 2


@pytest.mark.slow
def test_an_interrupt_keeps_every_finished_update(tmp_path: Path) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**TINY, "stages": [{**ALLOCATOR, "steps": 150000}]}))
    command = [
        sys.executable,
        "-m",
        "hrl_planner.cli",
        "train",
        "--config",
        str(path),
        "--out",
        str(out),
    ]
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            # A background shell ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    state = out / "stage-1-allocator" / STATE_FILE
    deadline_s = time.monotonic() + 240.0
    while not state.is_file() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, errors.read_text()
    saved = torch.load(state, weights_only=True)
    assert saved["progress"]["update"] >= 1
