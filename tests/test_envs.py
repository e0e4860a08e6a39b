"""The environments: their contracts, and that they are the planner loop seen from an agent."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_api_test
from stable_baselines3.common import env_checker

import envs
from envs import viewer
from envs.controlled import Run
from envs.parallel import GLOBAL_AGENT, HierarchyParallelEnv
from envs.simulation import Simulation
from hrl_planner.encoding import Layout
from hrl_planner.errors import HrlPlannerError
from hrl_planner.features import FeatureScales, encode
from hrl_planner.planner.hierarchy import HierarchicalPlanner
from hrl_planner.planner.loop import run as run_loop
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.trace import Trace

IDS = sorted(envs.ENTRY_POINTS)
GLOBAL = "hrl_planner/GlobalAllocator-v0"


def requests(rate: float = 2.0, busy_s: float = 480.0, duration_s: float = 600.0) -> Trace:
    trace = independent_requests(constant(rate, duration_s=busy_s), seed=1)
    # Nothing comes at the end, so that every request can be resolved within the episode.
    return Trace(
        name="quiet-end",
        arrival_s=trace.arrival_s,
        isl_tokens=trace.isl_tokens,
        osl_tokens=np.minimum(trace.osl_tokens, 300).astype(np.int32),
        duration_s=duration_s,
    )


def make(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    chosen: dict[str, Any] = {"spec": "small", "trace": requests(), **options}
    return gymnasium.make(name, disable_env_checker=True, **chosen)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_registration_is_idempotent() -> None:
    envs.register()
    envs.register()
    assert set(IDS) <= set(gymnasium.registry)


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_nothing_to_complain_about(name: str) -> None:
    check_env(make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_finds_nothing_to_complain_about(name: str) -> None:
    env_checker.check_env(make(name).unwrapped)


def test_pettingzoo_finds_nothing_to_complain_about() -> None:
    parallel_api_test(HierarchyParallelEnv(spec="small", trace=requests()), num_cycles=80)


@pytest.mark.parametrize("name", IDS)
def test_the_same_seed_gives_the_same_trajectory(name: str) -> None:
    first, second = (rollout(make(name), 7) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def rollout(env: gymnasium.Env[Any, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    seen, rewards, ended = [observation], [], False
    while not ended:
        observation, reward, terminated, ended, _ = env.step(env.action_space.sample())
        assert not terminated
        seen.append(observation)
        rewards.append(reward)
    return np.stack(seen), np.array(rewards)


def test_an_episode_ends_by_truncation_at_the_end_of_the_trace() -> None:
    assert len(rollout(make(GLOBAL), 0)[1]) == 10
    assert len(rollout(make("hrl_planner/Cluster-v0"), 0)[1]) == 60


def unwrapped_run(env: gymnasium.Env[Any, Any]) -> Run:
    run: Run = env.unwrapped.run  # type: ignore[attr-defined]
    return run


def test_action_0_is_the_lp_planner_over_the_rule() -> None:
    env = make(GLOBAL)
    env.reset(seed=3)
    episode = unwrapped_run(env).episode
    ended = False
    while not ended:
        *_, ended, _ = env.step(np.zeros(env.action_space.shape, np.float32))
    mine = unwrapped_run(env).simulation.result()

    spec = episode.spec
    simulation = Simulation(spec, episode.trace, seed=episode.seed, class_id=episode.class_id)
    planner = HierarchicalPlanner(make_policy("lp"), RulePolicy(within_quota=True))
    planner.reset(PlanContext(spec, seed=episode.seed))
    run_loop(simulation, planner, episode.trace.duration_s)
    theirs = simulation.result()
    np.testing.assert_array_equal(mine.finish_s, theirs.finish_s)
    np.testing.assert_array_equal(mine.gpu_seconds, theirs.gpu_seconds)


def test_rewards_add_up_to_attainment_and_costs() -> None:
    env = make(GLOBAL)
    env.reset(seed=0)
    terms: list[dict[str, float]] = []
    ended = False
    while not ended:
        _, reward, _, ended, info = env.step(np.zeros(env.action_space.shape, np.float32))
        terms.append(info["reward_terms"])
        assert reward == pytest.approx(sum(info["reward_terms"].values()))
        assert info["reward_terms"]["attained"] >= 0.0
        assert -unwrapped_run(env).episode.spec.reward.gpu_price_weight <= terms[-1]["price"] <= 0.0
        assert terms[-1]["churn"] <= 0.0
    run = unwrapped_run(env)
    result, spec = run.simulation.result(), run.episode.spec
    value = np.array([c.value for c in spec.slo_classes])[result.class_id]
    attained = float(value @ result.attained / value.sum())
    assert run.simulation.all_resolved
    assert np.mean([t["attained"] for t in terms]) == pytest.approx(attained)
    price = np.array([p.price_per_gpu_hour for p in spec.pools])
    dearest = {
        kind: max(p.price_per_gpu_hour for p in spec.pools if p.gpu_type == kind)
        for kind in spec.gpu_types
    }
    whole = sum(dearest[kind] * count for kind, count in spec.budget.gpus.items())
    share = float(price @ result.gpu_seconds) / (whole * run.end_s)
    expected = -spec.reward.gpu_price_weight * share
    assert np.mean([t["price"] for t in terms]) == pytest.approx(expected)
    assert info["gpu_hours"] == pytest.approx(result.gpu_seconds.sum() / 3600)


def test_observations_are_the_features_of_what_a_planner_sees() -> None:
    env = make(GLOBAL)
    env.reset(seed=0)
    for _ in range(4):
        observation, *_ = env.step(env.action_space.sample())
    run = unwrapped_run(env)
    seen = run.simulation.observe()
    pools, classes = encode(seen, FeatureScales.from_spec(run.episode.spec))
    parts = Layout.of(run.episode.spec).split(observation)
    np.testing.assert_array_equal(parts["pools"][:, : pools.shape[1]], pools)
    np.testing.assert_array_equal(parts["classes"][:, : classes.shape[1]], classes)
    assert parts["mask"].all()


def test_padding_is_masked_and_its_actions_do_nothing() -> None:
    layout = Layout(12, 4, 3)
    wide, narrow = make(GLOBAL, layout=layout), make(GLOBAL)
    observation, _ = wide.reset(seed=0)
    narrow.reset(seed=0)
    n = len(ClusterSpec.load("small").pools)
    assert layout.split(observation)["mask"].tolist() == [1.0] * n + [0.0] * (12 - n)
    action = wide.action_space.sample()
    assert wide.step(action)[1] == narrow.step(action[:n])[1]


def test_quotas_never_exceed_the_budget() -> None:
    env = make(GLOBAL)
    env.reset(seed=0)
    for sign in (1.0, -1.0, 1.0):
        env.step(np.full(env.action_space.shape, sign, np.float32))
        run = unwrapped_run(env)
        assert run.budget.fits(run.simulation.cluster.pools["quota"])
        assert np.all(run.simulation.cluster.pools["target"] <= run.control.quota)


def test_a_local_scaler_stays_within_its_quota() -> None:
    env = make("hrl_planner/LocalScaler-v0", quotas="random")
    _, info = env.reset(seed=5)
    for _ in range(12):
        *_, info = env.step(6)
        pool = ClusterSpec.load("small").pool_index(info["pool"])
        cluster = unwrapped_run(env).simulation.cluster
        assert cluster.pools["target"][pool] <= info["quotas"][info["pool"]]


def test_holding_in_the_flat_environment_changes_nothing() -> None:
    env = make("hrl_planner/Cluster-v0")
    env.reset(seed=0)
    before = unwrapped_run(env).simulation.cluster.pools["target"].copy()
    for _ in range(5):
        env.step(np.zeros(env.action_space.shape, np.float32))
    np.testing.assert_array_equal(unwrapped_run(env).simulation.cluster.pools["target"], before)


def test_global_action_counts_at_global_intervals_only() -> None:
    env = HierarchyParallelEnv(spec="small", trace=requests())
    env.reset(seed=0)
    quiet = np.zeros(env.layout.max_pools, np.float32)
    env.step({GLOBAL_AGENT: quiet})
    quotas = env._episodes.run(0).control.quota.copy()
    for _ in range(4):
        env.step({GLOBAL_AGENT: quiet + 1.0})
        np.testing.assert_array_equal(env._episodes.run(0).control.quota, quotas)


def test_options_choose_the_episode() -> None:
    env = make(GLOBAL)
    options = {"scenario": "steady-no-flap", "duration_s": 120.0, "load": 0.5}
    _, info = env.reset(seed=0, options=options)
    assert info["episode_name"] == "steady-no-flap"
    assert unwrapped_run(env).end_s == 120.0
    env.reset(seed=0, options={"start_s": 100.0, "duration_s": 200.0})
    assert unwrapped_run(env).end_s == 200.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senario": "x"}, "unknown option 'senario'"),
        ({"scenario": "nope"}, "unknown scenario 'nope'"),
        ({"duration_s": -1.0}, "duration_s must be positive"),
        ({"start_s": 1e9}, "behind the end"),
        ({"spec": "large"}, "do not fit the observation"),
        ({"load": float("nan")}, "load must be positive"),
        ({"scenario": "steady-no-flap", "trace": requests()}, "not both"),
    ],
)
def test_bad_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HrlPlannerError, match=message):
        make(GLOBAL).reset(options=options)


def test_unknown_render_modes_and_policies_are_refused() -> None:
    with pytest.raises(HrlPlannerError, match="render_mode"):
        HierarchyParallelEnv(spec="small", render_mode="human")
    with pytest.raises(HrlPlannerError, match="unknown policy"):
        make(GLOBAL, prior="nobody").reset()


def test_pictures_show_every_pool() -> None:
    env = make(GLOBAL)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    run = unwrapped_run(env)
    drawn = viewer.text(run)
    assert all(pool.name in drawn for pool in run.episode.spec.pools)
    image = viewer.picture(run)
    assert image.dtype == np.uint8 and image.ndim == 3 and len(np.unique(image)) > 10
