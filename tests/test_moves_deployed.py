"""A planner that moves: trained as deployed, from a checkpoint, in the environment, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium.utils.env_checker import check_env
from typer.testing import CliRunner

from agents.policies.moves import MovesHead
from agents.policies.network import Normaliser, SetNetwork, take_apart
from agents.train.config import parse
from envs.base import PlannerEnv
from envs.global_allocator import GlobalLevel, MovesLevel
from hrl_planner.cli import app
from hrl_planner.encoding import Layout
from hrl_planner.errors import CheckpointError, TrainingError
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.checkpoint import NetworkInfo, load
from hrl_planner.planner.registry import make_policy
from hrl_planner.workload.trace import Trace
from tests import networks
from tests.test_envs import requests
from tests.test_learned import assert_same, drive
from tests.test_moves import MOVES, SHAPE, SPECS, twins
from tests.test_train import ALLOCATOR, run, tiny


@pytest.fixture(scope="module")
def trace() -> Trace:
    return requests(duration_s=600.0, busy_s=500.0)


def write_checkpoint(folder: Path, tensors: checkpoints.Tensors, moves: int = MOVES) -> Path:
    manifest = networks.manifest(scaler=False).model_copy(
        update={"head": "moves", "moves": moves, "allocator": NetworkInfo.of(SHAPE)}
    )
    checkpoints.save(folder, manifest, tensors, None, "a card")
    return folder


def untrained() -> checkpoints.Tensors:
    actor, head = SetNetwork(SHAPE, Normaliser.identity()), MovesHead(6, MOVES, 0.5, 0.0)
    return {**actor.export(), **head.export()}


def test_an_untrained_checkpoint_is_the_lp_over_the_rule(tmp_path: Path, trace: Trace) -> None:
    path = write_checkpoint(tmp_path / "zero", untrained())
    learned = drive(make_policy(f"learned:path={path}"), trace, 3)
    assert_same(learned, drive(make_policy("lp+rule"), trace, 3))


def test_no_moves_in_the_environment_are_residuals_of_zero(trace: Trace) -> None:
    ends = []
    for level in (GlobalLevel(), MovesLevel()):
        env = PlannerEnv(level, spec=SPECS["small"], trace=trace)
        env.reset(seed=3)
        idle, ended = np.zeros(env.action_space.shape, env.action_space.dtype), False
        while not ended:
            *_, ended, _ = env.step(idle)
        ends.append(env.run.simulation.result())
    assert_same(*ends)


@torch.no_grad()
def test_a_trained_allocator_decides_in_the_environment_as_deployed(
    tmp_path: Path, trace: Trace
) -> None:
    actor, head, _ = twins(1)
    head.stop.bias.data -= 2.0
    path = write_checkpoint(tmp_path / "random", {**actor.export(), **head.export()})
    env = PlannerEnv(MovesLevel(), spec=SPECS["small"], trace=trace, layout=Layout(6, 4, 3))
    observation, _ = env.reset(seed=3)
    ended, moved = False, 0
    while not ended:
        assert env.observation_space.contains(observation)
        seen = take_apart(torch.from_numpy(observation[None]), env.layout)
        action = head.act(actor(seen), seen, True)[0].numpy()
        assert env.action_space.contains(action)
        moved += np.count_nonzero(action)
        observation, _, _, ended, _ = env.step(action)
    assert moved > 0
    policy = make_policy(f"learned:path={path},shield=false")
    assert_same(env.run.simulation.result(), drive(policy, trace, env.run.episode.seed))


def test_the_environment_is_sound_and_no_agent_leaves_the_budget(trace: Trace) -> None:
    env = PlannerEnv(MovesLevel(), spec=SPECS["small"], trace=trace)
    check_env(env, skip_render_check=True)
    env.reset(seed=1)
    env.action_space.seed(1)
    changed, ended = 0, False
    while not ended:
        assert env.run.plan is not None
        planned = env.run.plan.replicas.copy()
        *_, ended, _ = env.step(env.action_space.sample())
        quotas = env.run.control.quota
        changed += int(np.abs(quotas - planned).sum())
        assert env.run.excess == 0.0
        assert env.run.budget.fits(quotas.astype(np.int64))
    assert changed > 0


def test_a_checkpoint_whose_head_and_network_do_not_go_together_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "wrong", untrained(), moves=0)
    with pytest.raises(CheckpointError, match="head moves does not go with moves: 0"):
        load(path)


MOVING: dict[str, Any] = {**ALLOCATOR, "head": "moves", "moves": 3, "stop_odds": 0.1}


def test_training_with_moves_ends_in_a_checkpoint_that_can_be_simulated(tmp_path: Path) -> None:
    stages = [{**MOVING, "steps": 45}, {**MOVING, "steps": 15}]
    path = run(tiny(stages=stages), tmp_path / "run")
    assert path is not None
    checkpoint = load(path)
    assert (checkpoint.manifest.head, checkpoint.manifest.moves) == ("moves", 3)
    state = torch.load(tmp_path / "run" / "stage-1-allocator" / "state.pt", weights_only=True)
    assert float(state["policy"]["actor.head_2.weight"].abs().sum()) > 0.0
    arguments = ["simulate", "--spec", "small", "--scenario", "steady-no-flap", "--until", "120"]
    result = CliRunner().invoke(app, [*arguments, "--policy", f"learned:path={path}"])
    assert result.exit_code == 0, result.output


def test_moves_where_they_cannot_be_are_refused() -> None:
    with pytest.raises(TrainingError, match="moves is for level allocator, not flat"):
        parse({"stages": [{**MOVING, "level": "flat"}]}, "test")
    with pytest.raises(TrainingError, match="stop_odds: Input should be greater than 0"):
        parse({"stages": [{**MOVING, "stop_odds": 0.0}]}, "test")


def test_checkpoints_from_before_there_were_moves_still_load(tmp_path: Path) -> None:
    path = networks.write_checkpoint(tmp_path / "old") / "manifest.yaml"
    data = yaml.safe_load(path.read_text())
    del data["moves"], data["allocator"]["scorer"], data["scaler"]["scorer"]
    path.write_text(yaml.safe_dump(data))
    checkpoint = load(path.parent)
    assert checkpoint.manifest.moves == 0
    np.testing.assert_array_equal(
        checkpoint.allocator.net, networks.network(networks.ALLOCATOR, 1).net
    )
