"""The network is the same with torch and without, and treats pools alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policies.heads import ResidualHead, ScalerHead
from agents.policies.network import Critic, Normaliser, Parts, SetNetwork, take_apart
from envs.future import future_size
from hrl_planner.encoding import N_CLASS_COLUMNS, N_POOL_COLUMNS, Layout
from hrl_planner.planner.network import NetShape, forward, pack
from hrl_planner.planner.scaler import CHANGES
from tests.networks import tensors

ITL_TARGET = 1  # a class exists where its ITL target is not 0


def rows(n: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-3, 3, (n, columns)).astype(np.float32)


def padded(layout: Layout, pools: np.ndarray, classes: np.ndarray, phase: float) -> np.ndarray:
    vector = np.zeros(layout.size, np.float32)
    where = layout.slices
    vector[where["pools"]][: pools.size] = pools.ravel()
    vector[where["mask"]][: len(pools)] = 1.0
    vector[where["classes"]][: classes.size] = classes.ravel()
    vector[layout.size - 1] = phase
    return vector


def pools_of(mask: torch.Tensor) -> Parts:
    """Parts of which a head that chooses pool by pool looks at the mask alone."""
    empty = torch.empty(0)
    return Parts(empty, mask, empty, empty, empty, empty, empty)


shapes = st.builds(
    NetShape,
    class_hidden=st.integers(1, 20),
    hidden=st.integers(1, 40),
    attention=st.integers(0, 1),
    pooled=st.integers(0, 1),
    outputs=st.integers(1, 8),
    scorer=st.integers(0, 1),
)


@settings(max_examples=40)
@given(shapes, st.integers(1, 16), st.integers(1, 4), st.integers(0, 3), st.integers(0, 999))
def test_numpy_and_torch_agree_whatever_the_padding(
    shape: NetShape, n_pools: int, n_classes: int, padding: int, seed: int
) -> None:
    weights = tensors(shape, seed)
    twin = SetNetwork(shape, Normaliser.identity())
    twin.load(weights)
    pools, classes = rows(n_pools, N_POOL_COLUMNS, seed), rows(n_classes, N_CLASS_COLUMNS, seed + 1)
    classes[:, ITL_TARGET] = 0.5
    layout = Layout(n_pools + padding, n_classes + padding, 2)
    with torch.no_grad():
        batch = torch.from_numpy(padded(layout, pools, classes, 0.25)[None])
        expected = twin(take_apart(batch, layout)).numpy()[0, :n_pools]
    found = forward(pack(weights, shape), shape, pools, classes, 0.25)
    atol = 1e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


@settings(max_examples=25)
@given(shapes, st.integers(2, 12), st.integers(0, 999))
def test_permuting_pools_permutes_the_answer(shape: NetShape, n_pools: int, seed: int) -> None:
    net = pack(tensors(shape, seed), shape)
    pools, classes = rows(n_pools, N_POOL_COLUMNS, seed), rows(3, N_CLASS_COLUMNS, seed)
    order = np.random.default_rng(seed).permutation(n_pools)
    straight = forward(net, shape, pools, classes, 0.0)
    mixed = forward(net, shape, np.ascontiguousarray(pools[order]), classes, 0.0)
    np.testing.assert_allclose(mixed, straight[order], rtol=1e-4, atol=1e-5)


def test_weights_survive_export_and_load() -> None:
    shape = NetShape(5, 9, 1, 1, 2)
    weights = tensors(shape, 3)
    twin = SetNetwork(shape, Normaliser.identity())
    twin.load(weights)
    for name, value in twin.export().items():
        np.testing.assert_array_equal(value, weights[name])


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    shape = NetShape(5, 9, 0, 1, 2)
    weights = tensors(shape)
    wrong = {**weights, "head_1.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"head_1\.bias has shape \(3,\), expected \(9,\)"):
        pack(wrong, shape)
    del weights["pools_2.weight"]
    with pytest.raises(ValueError, match=r"pools_2\.weight is missing"):
        pack(weights, shape)


def test_a_new_network_answers_nothing_so_that_training_starts_at_the_planner() -> None:
    layout = Layout(4, 2, 2)
    twin = SetNetwork(NetShape(4, 8, 1, 1, 1), Normaliser.identity())
    pools, classes = rows(4, N_POOL_COLUMNS, 0), rows(2, N_CLASS_COLUMNS, 1)
    batch = torch.from_numpy(padded(layout, pools, classes, 0.0)[None])
    out = twin(take_apart(batch, layout))
    seen = pools_of(torch.ones(1, 4, dtype=torch.bool))
    assert torch.all(ResidualHead(0.4, 0.5).act(out, seen, True) == 0.0)
    scores = torch.zeros(1, 4, len(CHANGES))
    assert torch.all(ScalerHead(0.5).act(scores, seen, True) == 0)


def test_padding_neither_acts_nor_counts() -> None:
    mask = torch.tensor([[True, True, False]])
    seen, there = pools_of(mask), pools_of(mask[:, :2])
    for head, out in (
        (ResidualHead(0.4, 0.5), torch.randn(1, 3, 1)),
        (ScalerHead(0.5), torch.randn(1, 3, len(CHANGES))),
    ):
        actions = head.act(out, seen, False)
        assert actions[0, 2] == 0.0
        log_probability, entropy = head.judge(out, seen, actions)
        short = head.judge(out[:, :2], there, actions[:, :2])
        torch.testing.assert_close(log_probability, short[0])
        torch.testing.assert_close(entropy, short[1])


def test_log_probabilities_of_the_scaler_are_those_of_independent_choices() -> None:
    torch.manual_seed(0)
    out = torch.randn(5, 3, len(CHANGES))
    seen = pools_of(torch.ones(5, 3, dtype=torch.bool))
    head = ScalerHead(0.0)
    actions = head.act(out, seen, False)
    reference = torch.distributions.Categorical(logits=out)
    log_probability, entropy = head.judge(out, seen, actions)
    torch.testing.assert_close(log_probability, reference.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))


def test_only_the_critic_sees_the_future() -> None:
    layout, shape = Layout(3, 2, 1), NetShape(4, 8, 0, 1, 1)
    further = future_size(2)
    vector = padded(layout, rows(3, N_POOL_COLUMNS, 0), rows(2, N_CLASS_COLUMNS, 1), 0.0)
    one = torch.from_numpy(np.concatenate([vector, np.zeros(further, np.float32)])[None])
    other = one.clone()
    other[:, layout.size :] = 1.0
    actor = SetNetwork(shape, Normaliser.identity())
    torch.nn.init.normal_(actor.head_2.weight)
    critic = Critic(shape, Normaliser.identity(), further)
    seen, changed = take_apart(one, layout), take_apart(other, layout)
    assert torch.equal(actor(seen), actor(changed))
    assert not torch.equal(critic(seen), critic(changed))


@torch.no_grad()
def test_exploration_is_remembered_and_each_step_of_it_is_drawn_from_the_policy() -> None:
    torch.manual_seed(0)
    seen = pools_of(torch.ones(4000, 1, dtype=torch.bool))
    residual = ResidualHead(0.5, 0.8)
    mean = torch.full((4000, 1, 1), 0.1)
    first, second = (residual.act(mean, seen, False).squeeze() for _ in range(2))
    for drawn in (first, second):
        assert abs(float(drawn.mean()) - 0.1) < 0.04
        assert abs(float(drawn.std()) - 0.5) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1]) - 0.8) < 0.03
    scaler = ScalerHead(0.8)
    out = torch.zeros(4000, 1, len(CHANGES))
    out[..., 2] = 1.0
    first, second = (scaler.act(out, seen, False).squeeze() for _ in range(2))
    expected = float(torch.softmax(out[0, 0], -1)[2])
    assert abs(float((second == 2).float().mean()) - expected) < 0.04
    assert float((first == second).float().mean()) > 0.8
    scaler.forget()
    assert float((scaler.act(out, seen, False).squeeze() == second).float().mean()) < 0.5
