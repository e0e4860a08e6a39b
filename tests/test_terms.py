"""An allocator that sets the terms on which the LP plans, trained and deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.policies.heads import TermsHead
from agents.policies.network import take_apart
from envs.base import PlannerEnv
from envs.controlled import Level
from envs.global_allocator import GlobalLevel, TermsLevel
from envs.vec_env import ClusterVecEnv
from hrl_planner.capacity import CapacityModel
from hrl_planner.encoding import Layout
from hrl_planner.errors import CheckpointError, PolicyError
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.allocator import N_TERMS, by_role, terms_of
from hrl_planner.planner.checkpoint import NetworkInfo
from hrl_planner.planner.learned import LearnedAllocator
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.policy import FloatArray, Plan, PlanContext, Terms
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.scaler import outputs_of
from hrl_planner.routing import ROLES
from hrl_planner.workload.trace import Trace
from tests import networks
from tests.networks import network, zeros
from tests.test_envs import requests
from tests.test_learned import SPEC, assert_same, drive

ALLOCATOR = networks.ALLOCATOR._replace(outputs=N_TERMS)
N_POOLS = len(SPEC.pools)
SHAPE = (len(ROLES), N_TERMS)
OTHERS = terms_of(
    np.tile([-1.0, 0.5, -0.5, 0.7, 0.0], (len(ROLES), 1)), CapacityModel.from_spec(SPEC).role
)
NO_CHANGE = Terms.unchanged(N_POOLS)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return requests(rate=25.0, duration_s=600.0, busy_s=500.0)


def write_checkpoint(folder: Path, tensors: checkpoints.Tensors) -> Path:
    manifest = networks.manifest(scaler=False).model_copy(
        update={"head": "terms", "allocator": NetworkInfo.of(ALLOCATOR)}
    )
    checkpoints.save(folder, manifest, tensors, None, "a card")
    return folder


def everywhere(*action: float) -> FloatArray:
    """The same numbers for every role, 0 for those that are left out."""
    return np.tile([*action, *[0.0] * (N_TERMS - len(action))], (len(ROLES), 1))


def finished(env: PlannerEnv, *action: float) -> PlannerEnv:
    env.reset(seed=3)
    ended = False
    while not ended:
        *_, ended, _ = env.step(everywhere(*action))
    return env


def test_an_untrained_checkpoint_is_the_lp_over_the_rule(tmp_path: Path, trace: Trace) -> None:
    path = write_checkpoint(tmp_path / "zero", zeros(ALLOCATOR))
    learned = drive(make_policy(f"learned:path={path}"), trace, 3)
    assert_same(learned, drive(make_policy("lp+rule"), trace, 3))


def test_a_trained_allocator_decides_in_the_environment_as_deployed(
    tmp_path: Path, trace: Trace
) -> None:
    tensors = networks.tensors(ALLOCATOR, 1)
    path = write_checkpoint(tmp_path / "random", tensors)
    env = PlannerEnv(TermsLevel(), spec=SPEC, trace=trace)
    observation, _ = env.reset(seed=3)
    net, shape = network(ALLOCATOR, 1)
    ended, off = False, 0
    while not ended:
        assert env.run.plan is not None
        planned = env.run.plan.replicas.copy()
        out = outputs_of(net, shape, observation, N_POOLS, len(SPEC.slo_classes))
        action = by_role(out.astype(np.float64), CapacityModel.from_spec(SPEC).role)
        observation, _, _, ended, _ = env.step(action)
        off += int(np.abs(env.run.control.quota - planned).sum())
    assert off > 0
    policy = make_policy(f"learned:path={path},shield=false")
    assert_same(env.run.simulation.result(), drive(policy, trace, env.run.episode.seed))


def test_less_capacity_means_more_quota_and_what_else_terms_do(trace: Trace) -> None:
    def quota(trace: Trace, *action: float, prior: str = "lp:hold_s=60") -> float:
        env = PlannerEnv(TermsLevel(prior), spec=SPEC, trace=trace)
        env.reset(seed=3)
        total, ended = 0.0, False
        while not ended:
            *_, ended, _ = env.step(everywhere(*action))
            total += env.run.control.quota.sum()
        return total

    assert quota(trace, -1.0, 0, 0, 0) > quota(trace, 0, 0, 0, 0) > quota(trace, 1.0, 0, 0, 0)
    falls = requests(rate=40.0, busy_s=300.0, duration_s=900.0)
    assert quota(falls, 0, 1.0, 0, 0) > quota(falls, 0, -1.0, 0, 0)
    scarce = requests(rate=120.0, busy_s=800.0, duration_s=900.0)
    fickle = "lp:stop_weight=0.01,stop_weight_decode=0.01"
    held = [quota(scarce, 0, 0, keep, 0, prior=fickle) for keep in (-1.0, 0.0, 1.0)]
    assert held[0] < held[1] < held[2]
    assert quota(falls, 0, 0, 0, 1.0) > quota(falls, 0, 0, 0, -1.0)


def test_the_environment_is_sound_and_no_agent_leaves_the_budget(trace: Trace) -> None:
    env = PlannerEnv(TermsLevel(), spec=SPEC, trace=trace)
    check_env(env, skip_render_check=True)
    env.reset(seed=1)
    env.action_space.seed(1)
    ended = False
    while not ended:
        *_, ended, _ = env.step(env.action_space.sample())
        assert env.run.budget.fits(env.run.control.quota.astype(np.int64))


def test_processes_that_plan_again_plan_the_same(trace: Trace) -> None:
    ends = []
    for processes in (0, 1):
        env = ClusterVecEnv(
            TermsLevel(), 2, prior_processes=processes, spec=SPEC, trace=trace, seed=5
        )
        env.reset()
        rewards = [env.step(np.full((2, *SHAPE), act))[1] for act in (0.5, -0.5, 0.0)]
        ends.append(np.stack(rewards))
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("level", [TermsLevel("static"), TermsLevel("hpa")])
def test_a_prior_that_cannot_plan_again_is_refused(level: Level, trace: Trace) -> None:
    env = PlannerEnv(level, spec=SPEC, trace=trace)
    env.reset(seed=1)
    with pytest.raises(PolicyError, match="cannot plan again on other terms"):
        env.step(np.ones(SHAPE, np.float32))
    with pytest.raises(PolicyError, match="head terms needs a prior"):
        LearnedAllocator(network(ALLOCATOR, 1), make_policy(level.prior or ""), head="terms")


def test_planning_again_leaves_no_trace_in_the_planner(trace: Trace) -> None:
    """What is asked in between changes nothing about later plans."""

    class Asked(FluidPlanner):
        def decide(self, observation):  # type: ignore[no-untyped-def]
            plan = super().decide(observation)
            self.replan(OTHERS)
            again = self.replan(NO_CHANGE)
            if again is not None:  # it holds at first, for want of metrics
                seen.append(again)
                np.testing.assert_array_equal(again.replicas, plan.replicas)
            return plan

    seen: list[Plan] = []

    assert_same(drive(Asked(), trace, 3), drive(make_policy("lp"), trace, 3))
    assert seen


def test_a_planner_that_holds_has_nothing_to_plan_again() -> None:
    planner = FluidPlanner()
    planner.reset(PlanContext(SPEC))
    assert planner.replan(NO_CHANGE) is None


@given(
    action=arrays(np.float64, SHAPE, elements=st.floats(-10, 10)),
    roles=st.lists(st.integers(0, 2), min_size=1, max_size=8),
)
def test_terms_stay_within_their_bounds_and_zeros_change_nothing(
    action: FloatArray, roles: list[int]
) -> None:
    role = np.array(roles)
    terms = terms_of(action, role)
    assert terms.capacity.shape == terms.stop.shape == terms.keep.shape == role.shape
    assert np.all((terms.capacity >= 0.5) & (terms.capacity <= 2.0))
    assert np.all((terms.stop >= 0.1) & (terms.stop <= 10.0))
    assert np.all((terms.keep >= 0.5) & (terms.keep <= 2.0))
    assert 0.25 <= terms.outlook <= 4.0
    nothing, unchanged = terms_of(np.zeros(SHAPE), role), Terms.unchanged(role.size)
    np.testing.assert_array_equal(nothing.capacity, unchanged.capacity)
    np.testing.assert_array_equal(nothing.stop, unchanged.stop)
    np.testing.assert_array_equal(nothing.keep, unchanged.keep)
    assert (nothing.outlook, nothing.rebuild) == (unchanged.outlook, unchanged.rebuild)
    assert 0.25 <= terms.rebuild <= 4.0


def test_networks_of_before_rebuilds_leave_them_to_the_lp() -> None:
    role = CapacityModel.from_spec(SPEC).role
    terms = terms_of(np.full((len(ROLES), N_TERMS - 1), 0.5), role)
    assert terms.rebuild == 1.0 and terms.outlook == 2.0


@torch.no_grad()
def test_the_head_that_is_trained_means_what_is_deployed() -> None:
    """Pools and roles that do not exist neither act nor count."""
    env = PlannerEnv(TermsLevel(), spec=SPEC, trace=requests(), layout=Layout(6, 4, 3))
    seen = take_apart(torch.from_numpy(env.reset(seed=1)[0][None]), env.layout)
    out = 0.3 * torch.randn(1, 6, N_TERMS, generator=torch.Generator().manual_seed(1))
    head = TermsHead(0.4, 0.5)
    acted = head.act(out, seen, True)[0]
    assert env.action_space.contains(acted.numpy())
    role = CapacityModel.from_spec(SPEC).role
    np.testing.assert_allclose(acted, by_role(out[0, :N_POOLS].double().numpy(), role), atol=1e-6)
    _, entropy = head.judge(out, seen, acted[None])
    assert entropy.item() == pytest.approx(
        2 * N_TERMS * (np.log(0.4) + 0.5 * np.log(2 * np.pi * np.e))
    )


def test_a_checkpoint_with_other_outputs_than_terms_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "wrong", zeros(ALLOCATOR))
    manifest = path / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace(f"outputs: {N_TERMS}", "outputs: 1"))
    with pytest.raises(
        CheckpointError, match=r"head terms needs allocator\.outputs: 4 or 5, not 1"
    ):
        checkpoints.load(path)


def test_levels_of_residuals_and_terms_agree_on_doing_nothing(trace: Trace) -> None:
    plain = PlannerEnv(GlobalLevel(), spec=SPEC, trace=trace)
    plain.reset(seed=3)
    ended = False
    while not ended:
        *_, ended, _ = plain.step(np.zeros(N_POOLS, np.float32))
    env = finished(PlannerEnv(TermsLevel(), spec=SPEC, trace=trace), 0.0)
    assert_same(plain.run.simulation.result(), env.run.simulation.result())
