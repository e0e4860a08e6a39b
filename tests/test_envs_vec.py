"""The batched environment: equal to single ones, whatever the batch and the threads."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numba
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from envs.cluster import FlatLevel
from envs.controlled import Level
from envs.global_allocator import GlobalAllocatorEnv, GlobalLevel
from envs.local_scaler import LocalLevel
from envs.vec_env import ClusterVecEnv
from hrl_planner.errors import PolicyError
from tests.test_envs import requests

OPTIONS: dict[str, Any] = {"spec": "small", "trace": requests(duration_s=300.0, busy_s=280.0)}


def batch(n: int, level: Level | None = None, **more: Any) -> ClusterVecEnv:
    return ClusterVecEnv(level or GlobalLevel(), n, **{**OPTIONS, **more})


def roll(env: ClusterVecEnv, steps: int, seed: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Actions of environment i depend on i only, not on how many there are."""
    seen, rewards = [env.reset()], []
    generators = [np.random.default_rng([seed, i]) for i in range(env.num_envs)]
    size = env.action_space.shape
    for _ in range(steps):
        actions = np.stack([g.uniform(-1, 1, size).astype(np.float32) for g in generators])
        observation, reward, _, _ = env.step(actions)
        seen.append(observation)
        rewards.append(reward)
    return np.stack(seen), np.stack(rewards)


def test_a_batch_is_as_many_single_environments() -> None:
    seen, rewards = roll(batch(2, seed=5), 4)
    for i in range(2):
        single = GlobalAllocatorEnv(**OPTIONS)
        single._np_random = np.random.default_rng(5 + i)
        observation, _ = single.reset()
        np.testing.assert_array_equal(observation, seen[0, i])
        generator = np.random.default_rng([11, i])
        for k in range(4):
            action = generator.uniform(-1, 1, single.action_space.shape).astype(np.float32)
            observation, reward, *_ = single.step(action)
            np.testing.assert_array_equal(observation, seen[k + 1, i])
            assert np.float32(reward) == rewards[k, i]


def test_neither_batch_size_nor_threads_change_a_trajectory() -> None:
    alone = roll(batch(1), 8)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    three_on_one = roll(batch(3), 8)
    numba.set_num_threads(threads)
    three = roll(batch(3), 8)
    for one, other, many in zip(alone, three_on_one, three, strict=True):
        np.testing.assert_array_equal(other, many)
        np.testing.assert_array_equal(one[:, 0], many[:, 0])


def test_plans_made_in_other_processes_are_the_same_plans() -> None:
    here = roll(batch(3), 8)
    elsewhere = roll(batch(3, prior_processes=2), 8)
    for a, b in zip(here, elsewhere, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_prior_that_cannot_begin_is_told_by_whichever_process_it_is_in() -> None:
    for processes in (0, 2):
        env = batch(2, GlobalLevel("thresholds"), prior_processes=processes)
        with pytest.raises(PolicyError, match="none are tuned for spec 'small'"):
            env.reset()
        env.close()


def test_processes_of_priors_end_with_their_environment() -> None:
    before = set(multiprocessing.active_children())
    env = batch(2, prior_processes=2)
    env.reset()
    ours = set(multiprocessing.active_children()) - before
    assert len(ours) == 2
    env.close()
    for process in ours:
        process.join(30.0)
        assert not process.is_alive()


def test_a_finished_episode_is_followed_in_the_same_step() -> None:
    env = batch(2)
    first = env.reset()
    for _ in range(5):
        observation, _, dones, infos = env.step(np.zeros((2, *env.action_space.shape), np.float32))
    assert dones.all()
    for i in range(2):
        assert infos[i]["TimeLimit.truncated"]
        assert infos[i]["terminal_observation"].shape == observation[i].shape
        assert infos[i]["episode"]["l"] == 5
        assert not np.array_equal(infos[i]["terminal_observation"], observation[i])
    assert first.shape == observation.shape


def test_returned_arrays_are_fresh() -> None:
    env = batch(2)
    first = env.reset()
    kept = first.copy()
    second, *_ = env.step(np.zeros((2, *env.action_space.shape), np.float32))
    third, *_ = env.step(np.zeros((2, *env.action_space.shape), np.float32))
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(second, third)


def test_seeds_apply_at_the_next_reset() -> None:
    env = batch(2)
    env.seed(42)
    first = roll(env, 2)
    env.seed(42)
    second = roll(env, 2)
    np.testing.assert_array_equal(first[1], second[1])


def test_staggered_starts_end_at_different_steps() -> None:
    env = batch(5, stagger=True)
    env.reset()
    ends = []
    for step in range(5):
        _, _, dones, _ = env.step(np.zeros((5, *env.action_space.shape), np.float32))
        ends += [step + 1] * int(dones.sum())
    assert ends[:3] == [1, 2, 2] or len(set(ends)) >= 4


@pytest.mark.parametrize("level", [LocalLevel("random"), FlatLevel()])
def test_every_level_can_be_batched(level: Level) -> None:
    env = batch(2, level)
    env.reset()
    actions = np.stack([env.action_space.sample() for _ in range(2)])
    observation, rewards, _, _ = env.step(actions)
    assert env.observation_space.contains(observation[0])
    assert np.isfinite(rewards).all()


def test_stable_baselines_trains_on_it() -> None:
    env = VecNormalize(VecMonitor(batch(2)))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(32)
    assert model.num_timesteps == 32
