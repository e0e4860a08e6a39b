"""Budgeted moves: never outside the budget, exact probabilities, equal with or without torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bounds.specs import tighten
from agents.policies.moves import MovesHead
from agents.policies.network import Normaliser, Parts, SetNetwork, take_apart
from hrl_planner.budget import BudgetArrays, project
from hrl_planner.encoding import LIMIT, N_CLASS_COLUMNS, N_POOL_COLUMNS, PLAN, Layout
from hrl_planner.limits import limit_rows
from hrl_planner.planner.moves import Room, apply_moves, best_moves
from hrl_planner.planner.network import NetShape, Network, forward, pack
from hrl_planner.spec import ClusterSpec
from tests import networks

SHAPE = NetShape(class_hidden=4, hidden=8, attention=0, pooled=1, outputs=6, scorer=1)
SPECS = {name: ClusterSpec.load(name) for name in ("small", "reference")}
MOVES = 6


def bounded(spec: ClusterSpec, watts: float | None, total: float | None) -> ClusterSpec:
    """The cluster with a share of the power and of the GPUs that its budget could use."""
    budget = spec.budget
    held = [p.max_replicas for p in spec.pools]
    drawn = sum(n * spec.power_w_per_replica(i) for i, n in enumerate(held))
    least = [max(p.initial, p.min_replicas) for p in spec.pools]
    needed_w = sum(n * spec.power_w_per_replica(i) for i, n in enumerate(least))
    needed = sum(n * p.gpus_per_replica for n, p in zip(least, spec.pools, strict=True))
    there = sum(budget.gpus.values())
    change = {
        "watts": None if watts is None else max(watts * drawn, needed_w),
        "total_gpus": None if total is None else max(round(total * there), needed),
    }
    return spec.replace(budget=budget.model_copy(update=change))


share = st.one_of(st.none(), st.floats(0.2, 0.9))
clusters = st.builds(
    lambda name, factor, watts, total: bounded(tighten(SPECS[name], factor), watts, total),
    st.sampled_from(sorted(SPECS)),
    st.floats(0.2, 1.3),
    share,
    share,
)


def vectors(
    spec: ClusterSpec, plans: np.ndarray, seed: int, padding: int = 0
) -> tuple[np.ndarray, Layout]:
    """Observations of a cluster with random features and these plans, (B, P)."""
    rng = np.random.default_rng(seed)
    fit, n_pools, n_classes = Layout.of(spec), len(spec.pools), len(spec.slo_classes)
    layout = Layout(n_pools + padding, n_classes, fit.max_types)
    arrays = BudgetArrays.from_spec(spec)
    batch = np.zeros((len(plans), layout.size), np.float32)
    parts = layout.split(batch)
    pools = rng.uniform(-2, 2, (len(plans), n_pools, N_POOL_COLUMNS))
    pools[..., PLAN] = plans / arrays.maximum
    parts["pools"][:, :n_pools] = pools
    parts["mask"][:, :n_pools] = 1.0
    parts["classes"][:] = rng.uniform(0.1, 2, (len(plans), n_classes, N_CLASS_COLUMNS))
    parts["limits"][:, :n_pools] = limit_rows(arrays)
    return batch, layout


def twins(seed: int, n_moves: int = MOVES) -> tuple[SetNetwork, MovesHead, Network]:
    """Random weights, with torch and packed."""
    weights = networks.tensors(SHAPE, seed)
    actor, head = SetNetwork(SHAPE, Normaliser.identity()), MovesHead(6, n_moves, 1.0, 0.0)
    actor.load(weights)
    head.load(weights)
    return actor, head, Network(pack(weights, SHAPE), SHAPE)


def rooms(batch: np.ndarray, layout: Layout, n_pools: int) -> list[Room]:
    """What bounds the moves, read from observations."""
    parts = layout.split(batch.astype(np.float64))
    return [
        Room.of(limits[:n_pools], pools[:n_pools, PLAN])
        for limits, pools in zip(parts["limits"], parts["pools"], strict=True)
    ]


def random_plans(spec: ClusterSpec, n: int, seed: int) -> np.ndarray:
    """Plans within the budget, most of them near it."""
    rng, arrays = np.random.default_rng(seed), BudgetArrays.from_spec(spec)
    wishes = rng.uniform(0, 1.2, (n, 1)) * arrays.maximum * rng.uniform(0, 1, (n, len(spec.pools)))
    current = np.array([p.initial for p in spec.pools])
    return np.array([project(wish, current, arrays) for wish in wishes])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads cost more than these small tensors."""
    torch.set_num_threads(1)


@settings(max_examples=40)
@given(clusters, st.integers(0, 999), st.integers(0, 2))
def test_no_move_breaks_the_budget_and_the_projection_changes_nothing(
    spec: ClusterSpec, seed: int, padding: int
) -> None:
    torch.manual_seed(seed)
    arrays, plans = BudgetArrays.from_spec(spec), random_plans(spec, 8, seed)
    batch, layout = vectors(spec, plans, seed, padding)
    actor, head, _ = twins(seed)
    head.stop.bias.data.fill_(-8.0)
    with torch.no_grad():
        seen = take_apart(torch.from_numpy(batch), layout)
        actions = head.act(actor(seen), seen, False).numpy()
    for plan, room, moves in zip(
        plans, rooms(batch, layout, len(spec.pools)), actions, strict=True
    ):
        np.testing.assert_array_equal(room.planned, plan)
        made = apply_moves(room, moves, layout.max_pools)
        assert np.abs(made - plan).sum() == np.count_nonzero(moves)
        assert arrays.fits(made.astype(np.int64))
        current = np.array([p.initial for p in spec.pools])
        np.testing.assert_array_equal(project(made, current, arrays), made)


@settings(max_examples=30)
@given(clusters, st.integers(0, 999))
def test_whatever_is_asked_the_moves_made_stay_within_the_budget(
    spec: ClusterSpec, seed: int
) -> None:
    arrays, plan = BudgetArrays.from_spec(spec), random_plans(spec, 1, seed)[0]
    room = Room.of(limit_rows(arrays), plan / arrays.maximum)
    asked = np.random.default_rng(seed).integers(0, 1 + 2 * plan.size, 40)
    made = apply_moves(room, asked, plan.size).astype(np.int64)
    assert arrays.fits(made)
    assert np.all((arrays.minimum <= made) & (made <= arrays.maximum))


def test_a_move_is_refused_only_where_a_limit_forbids_it() -> None:
    """Every single move that keeps the bounds is allowed: the mask hides nothing."""
    for name, factor in itertools.product(SPECS, (0.4, 0.8, 1.0)):
        spec = bounded(tighten(SPECS[name], factor), 0.7, 0.8)
        arrays = BudgetArrays.from_spec(spec)
        for plan in random_plans(spec, 10, 1):
            room = Room.of(limit_rows(arrays), plan / arrays.maximum)
            grow, shrink = room.allowed(np.zeros(plan.size))
            for i in range(plan.size):
                more = plan + (np.arange(plan.size) == i)
                assert grow[i] == (more[i] <= arrays.maximum[i] and arrays.fits(more))
                assert shrink[i] == (plan[i] > arrays.minimum[i])


def test_limits_are_exact_and_within_the_observation_space() -> None:
    for name in ("small", "reference", "large"):
        arrays = BudgetArrays.from_spec(ClusterSpec.load(name))
        rows = limit_rows(arrays)
        assert np.abs(rows).max() <= LIMIT
        np.testing.assert_array_equal(rows.astype(np.float32), rows)
        room = Room.of(rows, np.zeros(arrays.gpus.size))
        np.testing.assert_array_equal(room.gpus, arrays.gpus)
        np.testing.assert_array_equal(room.maximum, arrays.maximum)
        np.testing.assert_array_equal(room.minimum, arrays.minimum)
        same = arrays.type_index[:, None] == arrays.type_index
        np.testing.assert_array_equal(room.same_type, same)


def repeated(parts: Parts, n: int) -> Parts:
    return Parts(**{name: value.expand(n, *value.shape[1:]) for name, value in vars(parts).items()})


@pytest.mark.parametrize("n_moves", [1, 2, 3])
def test_probabilities_of_all_decisions_sum_to_one(n_moves: int) -> None:
    """Every decision is listed once: behind a stop stand stops."""
    spec = tighten(SPECS["small"], 0.3)
    plan = random_plans(spec, 1, 4)
    batch, layout = vectors(spec, plan, 4)
    actor, head, _ = twins(5, n_moves)
    n_pools = len(spec.pools)
    every = [
        moves
        for moves in itertools.product(range(1 + 2 * n_pools), repeat=n_moves)
        if all(a or not b for a, b in itertools.pairwise(moves))
    ]
    seen = repeated(take_apart(torch.from_numpy(batch), layout), len(every))
    with torch.no_grad():
        logs, _ = head.judge(actor(seen), seen, torch.tensor(every))
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(logs.exp().max()) < 0.99
    room = rooms(batch, layout, n_pools)[0]
    for moves, log in zip(every, logs.tolist(), strict=True):
        possible = np.abs(apply_moves(room, moves, n_pools) - plan[0]).sum() == np.count_nonzero(
            moves
        )
        assert possible or log < -1e6


@torch.no_grad()
def test_decisions_are_drawn_with_the_probabilities_that_are_judged() -> None:
    torch.manual_seed(0)
    spec = SPECS["small"]
    batch, layout = vectors(spec, random_plans(spec, 1, 2), 2)
    actor, head, _ = twins(3, 2)
    seen = repeated(take_apart(torch.from_numpy(batch), layout), 20_000)
    out = actor(seen)
    actions = head.act(out, seen, False)
    logs, entropy = head.judge(out, seen, actions)
    drawn, where, count = torch.unique(actions, dim=0, return_inverse=True, return_counts=True)
    assert len(drawn) > 10
    judged = torch.zeros(len(drawn)).scatter_(0, where, logs.exp())
    assert float((count / len(actions) - judged).abs().max()) < 0.015
    # The chain rule: the mean of the entropies met on the way is the entropy of the decision.
    assert float(entropy.mean()) == pytest.approx(float(-logs.mean()), abs=0.03)


@torch.no_grad()
@settings(max_examples=20)
@given(st.integers(0, 999))
def test_permuting_pools_permutes_the_distribution(seed: int) -> None:
    torch.manual_seed(seed)
    spec = SPECS["reference"]
    n_pools = len(spec.pools)
    batch, layout = vectors(spec, random_plans(spec, 6, seed), seed)
    order = np.random.default_rng(seed).permutation(n_pools)
    mixed = batch.copy()
    for name in ("pools", "mask", "limits"):
        layout.split(mixed)[name][:] = layout.split(batch)[name][:, order]
    actor, head, _ = twins(seed)
    seen, other = (take_apart(torch.from_numpy(b), layout) for b in (batch, mixed))
    actions = head.act(actor(seen), seen, False)
    place = np.argsort(order)  # where a pool stands now
    renamed = torch.from_numpy(np.concatenate([[0], 1 + place, 1 + n_pools + place]))[actions]
    straight = head.judge(actor(seen), seen, actions)
    permuted = head.judge(actor(other), other, renamed)
    torch.testing.assert_close(straight, permuted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@settings(max_examples=30)
@given(clusters, st.integers(0, 999), st.integers(0, 2))
def test_numpy_and_torch_decide_the_same_whatever_the_padding(
    spec: ClusterSpec, seed: int, padding: int
) -> None:
    n_pools, n_classes = len(spec.pools), len(spec.slo_classes)
    batch, layout = vectors(spec, random_plans(spec, 4, seed), seed, padding)
    actor, head, network = twins(seed)
    head.stop.bias.data -= 2.0
    network = network._replace(net=pack({**actor.export(), **head.export()}, SHAPE))
    seen = take_apart(torch.from_numpy(batch), layout)
    theirs = head.act(actor(seen), seen, True).numpy()
    parts = layout.split(batch)
    for b, room in enumerate(rooms(batch, layout, n_pools)):
        pools = np.ascontiguousarray(parts["pools"][b, :n_pools])
        classes = np.ascontiguousarray(parts["classes"][b, :n_classes])
        out = forward(*network, pools, classes, float(batch[b, -1]))
        ours = best_moves(network, out, room, MOVES)
        one = apply_moves(room, ours, n_pools)
        np.testing.assert_array_equal(one, apply_moves(room, theirs[b], layout.max_pools))
        assert np.count_nonzero(theirs[b]) == len(ours)


@torch.no_grad()
def test_a_new_policy_makes_no_move_and_every_move_is_as_likely_as_another() -> None:
    for name, spec in SPECS.items():
        batch, layout = vectors(spec, random_plans(spec, 5, 0), 0)
        actor, head = SetNetwork(SHAPE, Normaliser.identity()), MovesHead(6, MOVES, 0.5, 0.0)
        seen = take_apart(torch.from_numpy(batch), layout)
        out = actor(seen)
        assert torch.all(head.act(out, seen, True) == 0), name
        nothing = torch.zeros(5, MOVES, dtype=torch.long)
        stopped, _ = head.judge(out, seen, nothing)
        torch.testing.assert_close(stopped.exp(), torch.full((5,), 1.0 / (1.0 + np.exp(-0.5))))


def test_the_first_gradient_reaches_the_network_and_the_scorer() -> None:
    spec = SPECS["small"]
    batch, layout = vectors(spec, random_plans(spec, 8, 0), 0)
    torch.manual_seed(0)
    actor, head = SetNetwork(SHAPE, Normaliser.identity()), MovesHead(6, MOVES, 0.5, 0.0)
    seen = take_apart(torch.from_numpy(batch), layout)
    out = actor(seen)
    logs, _ = head.judge(out, seen, head.act(out, seen, False))
    logs.sum().backward()
    for parameter in (actor.head_2.weight, head.move.weight, head.pair.bias, head.stop.bias):
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0.0


def test_a_policy_gradient_finds_the_moves_that_pay() -> None:
    """A replica pays in the pool whose first feature is largest, and costs a little elsewhere."""
    torch.manual_seed(0)
    spec, shape = SPECS["reference"], SHAPE._replace(hidden=16)
    actor, head = SetNetwork(shape, Normaliser.identity()), MovesHead(6, 3, 0.5, 0.0)
    learner = torch.optim.Adam([*actor.parameters(), *head.parameters()], lr=0.01)
    least = np.tile([p.min_replicas for p in spec.pools], (64, 1))

    def paid(actions: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        right = actions == best.unsqueeze(-1) + 1
        return right.float().sum(-1) - 0.1 * ((actions != 0) & ~right).float().sum(-1)

    for seed in range(120):
        batch, layout = vectors(spec, least, seed)
        seen = take_apart(torch.from_numpy(batch), layout)
        best, out = seen.pools[..., 0].argmax(-1), actor(seen)
        actions = head.act(out, seen, False)
        reward = paid(actions, best)
        logs, _ = head.judge(out, seen, actions)
        learner.zero_grad()
        (-(logs * (reward - reward.mean())).mean()).backward()
        learner.step()
    chosen = head.act(out, seen, True)
    assert float(paid(chosen, best).mean()) > 1.5
