"""What the numbers a network gives per pool mean as a distribution over actions.

`act` turns outputs (B, P, outputs) into actions, `judge` returns log-probability and entropy of
actions, each (B,). Pools that are padding neither act nor count. Two heads choose for every pool
apart, actions (B, P); `TermsHead` for every role, the mean of its pools, actions (B, roles,
outputs); `moves` has the one that chooses for all pools together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from agents.policies.network import Parts, Tensors
from hrl_planner.routing import ROLES


class Head(nn.Module):
    """What all heads can do."""

    def forget(self) -> None:
        """Draw whatever is random anew at the next step."""

    def act(self, out: Tensor, parts: Parts, deterministic: bool) -> Tensor:
        """Return actions."""
        raise NotImplementedError

    def judge(self, out: Tensor, parts: Parts, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy."""
        raise NotImplementedError

    def export(self) -> Tensors:
        """Return what of the head a checkpoint needs."""
        return {}

    def load(self, tensors: Tensors) -> None:
        """Take over exported tensors."""


def gumbel(like: Tensor) -> Tensor:
    """Return Gumbel noise: the largest of scores plus this is a draw from their softmax."""
    return -torch.log(-torch.log(torch.rand_like(like).clamp(1e-9, 1.0 - 1e-7)))


class ResidualHead(Head):
    """A normal distribution around the correction of every pool, one deviation for all.

    Args:
        std: deviation at first; a residual of 0.5 is what moves a small pool by one replica.
        memory: correlation of the noise from one step to the next. Replicas take minutes to start:
            noise that changes sign every minute never gets to see one serve. Probabilities are
            those of a single step, as in gSDE (Raffin et al., arXiv 2005.05719).
    """

    def __init__(self, std: float, memory: float) -> None:
        """See the class."""
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))
        self._memory = memory
        self._noise: Tensor | None = None

    def forget(self) -> None:
        """Draw the noise anew at the next step."""
        self._noise = None

    def act(self, out: Tensor, parts: Parts, deterministic: bool) -> Tensor:
        """Return corrections; clipping to [-1, 1] is the environment's."""
        mean, there = self.means(out, parts)
        if deterministic:
            return mean
        fresh = torch.randn_like(mean)
        kept = self._noise
        if kept is not None and kept.shape == fresh.shape:
            fresh = self._memory * kept + math.sqrt(1.0 - self._memory**2) * fresh
        self._noise = fresh
        return mean + fresh * self.log_std.exp() * there

    def judge(self, out: Tensor, parts: Parts, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy."""
        mean, there = self.means(out, parts)
        z = (actions.reshape(mean.shape) - mean) / self.log_std.exp()
        log_probability = -0.5 * z * z - self.log_std - 0.5 * math.log(2.0 * math.pi)
        entropy = self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)
        return (log_probability * there).flatten(1).sum(-1), (entropy * there).flatten(1).sum(-1)

    def means(self, out: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return the mean of every number that is drawn, and which of them count."""
        return out[..., 0] * parts.mask, parts.mask


class TermsHead(ResidualHead):
    """The same around the terms of every role: the means of what its pools say.

    What matters of terms they mostly share by role, and noise of their own in every pool would
    drown the effect of each.
    """

    def means(self, out: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return (B, roles, outputs), see `hrl_planner.planner.allocator.by_role`."""
        role = parts.pools[..., : len(ROLES)] * parts.mask.unsqueeze(-1)
        count = role.sum(1).unsqueeze(-1)
        means = role.transpose(1, 2) @ out / count.clamp(min=1.0)
        return means, (count > 0.5).expand(means.shape)


class ScalerHead(Head):
    """A choice among `CHANGES` for every pool, independent given the state.

    Args:
        memory: chance that a pool keeps its luck from the step before, see `ResidualHead`.
    """

    def __init__(self, memory: float) -> None:
        """See the class."""
        super().__init__()
        self._memory = memory
        self._noise: Tensor | None = None

    def forget(self) -> None:
        """Draw the luck anew at the next step."""
        self._noise = None

    def act(self, out: Tensor, parts: Parts, deterministic: bool) -> Tensor:
        """Return action indices."""
        scores = out
        if not deterministic:
            fresh = gumbel(scores)
            kept = self._noise
            if kept is not None and kept.shape == fresh.shape:
                keep = torch.rand(*scores.shape[:-1], 1) < self._memory
                fresh = torch.where(keep, kept, fresh)
            self._noise = fresh
            scores = scores + fresh
        return scores.argmax(dim=-1) * parts.mask

    def judge(self, out: Tensor, parts: Parts, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy."""
        logs = log_softmax(out, dim=-1)
        chosen = logs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        return (chosen * parts.mask).sum(-1), (entropy * parts.mask).sum(-1)
