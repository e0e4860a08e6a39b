"""Stable-Baselines3's actor-critic interface over set networks."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.policies.heads import Head
from agents.policies.network import Critic, Normaliser, SetNetwork, Tensors, take_apart
from hrl_planner.encoding import Layout
from hrl_planner.planner.network import NetShape


class SetPolicy(ActorCriticPolicy):
    """One policy for any number of pools; pools share weights.

    Args:
        observation_space: vectors of `layout`, with what a critic may see behind them.
        action_space: Box (P,) for the residual head, Box (roles, terms) for the terms,
            MultiDiscrete for the others.
        lr_schedule: learning rate.
        layout: sizes of the vector.
        shape: sizes of the actor; the critic has the same encoder.
        normaliser: of the features.
        head: what the outputs mean.
        sees_future: the critic sees what stands behind the vector.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        layout: Layout,
        shape: NetShape,
        normaliser: Normaliser,
        head: Head,
        sees_future: bool = True,
        **ignored: Any,
    ) -> None:
        """See the class."""
        self._layout, self._shape, self._normaliser = layout, shape, normaliser
        # In a tuple: torch takes no modules before its own constructor has run.
        self._given, self._sees_future = (head,), sees_future
        super().__init__(observation_space, action_space, lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """Make actor, critic and optimiser."""
        assert isinstance(self.observation_space, spaces.Box)
        behind = self.observation_space.shape[0] - self._layout.size
        self.actor = SetNetwork(self._shape, self._normaliser)
        self.head: Head = self._given[0]
        critic_shape = self._shape._replace(pooled=0, outputs=1)
        self.critic = Critic(critic_shape, self._normaliser, behind if self._sees_future else 0)
        # Parameters as SB3's own policies have them.
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return what only the policy's gradient moves."""
        return [*self.actor.parameters(), *self.head.parameters()]

    def export(self) -> Tensors:
        """Return actor and head as a checkpoint has them."""
        return {**self.actor.export(), **self.head.export()}

    def load_actor(self, tensors: Tensors) -> None:
        """Take over exported tensors."""
        self.actor.load(tensors)
        self.head.load(tensors)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values and log-probabilities."""
        parts = take_apart(obs, self._layout)
        out = self.actor(parts)
        actions = self.head.act(out, parts, deterministic)
        log_probability, _ = self.head.judge(out, parts, actions)
        return actions, self._value(obs), log_probability

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log-probabilities and entropy of actions."""
        assert isinstance(obs, Tensor)
        parts = take_apart(obs, self._layout)
        log_probability, entropy = self.head.judge(self.actor(parts), parts, actions)
        return self._value(obs), log_probability, entropy

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Return values."""
        assert isinstance(obs, Tensor)
        return self._value(obs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        parts = take_apart(observation, self._layout)
        return self.head.act(self.actor(parts), parts, deterministic)

    def _value(self, obs: Tensor) -> Tensor:
        parts = take_apart(obs, self._layout)
        if not self._sees_future:
            parts.further = torch.empty(obs.shape[0], 0)
        value: Tensor = self.critic(parts)
        return value
