"""What the numbers a network gives per pool mean as a distribution over actions.

Pools that are padding neither act nor count: their log-probability and entropy are 0.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from hrl_planner.planner.scaler import BY_RULE, CHANGES


class Head(Protocol):
    """A family of distributions."""

    outputs: int

    def act(self, out: Tensor, mask: Tensor, deterministic: bool) -> Tensor:
        """Return actions (B, P) for outputs (B, P, outputs)."""

    def judge(self, out: Tensor, mask: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of actions, each (B,)."""


class ResidualHead(nn.Module):
    """A normal distribution around the residual of every pool, one deviation for all.

    Args:
        std: deviation at first; a residual of 0.5 is what moves a small pool by one replica.
    """

    outputs = 1

    def __init__(self, std: float) -> None:
        """See the class."""
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))

    def act(self, out: Tensor, mask: Tensor, deterministic: bool) -> Tensor:
        """Return residuals; clipping to [-1, 1] is the environment's."""
        mean = out[..., 0] * mask
        if deterministic:
            return mean
        return mean + torch.randn_like(mean) * self.log_std.exp() * mask

    def judge(self, out: Tensor, mask: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy."""
        z = (actions - out[..., 0]) / self.log_std.exp()
        log_probability = -0.5 * z * z - self.log_std - 0.5 * math.log(2.0 * math.pi)
        entropy = self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)
        return (log_probability * mask).sum(-1), (entropy * mask).sum(-1)


class ScalerHead(nn.Module):
    """A choice among `CHANGES` for every pool, independent given the state.

    Args:
        rule: log-odds added to following the rule at first.
    """

    outputs = len(CHANGES)

    def __init__(self, rule: float) -> None:
        """See the class."""
        super().__init__()
        offset = torch.zeros(len(CHANGES))
        offset[BY_RULE] = rule
        self.register_buffer("offset", offset)
        self.offset: Tensor

    def act(self, out: Tensor, mask: Tensor, deterministic: bool) -> Tensor:
        """Return action indices."""
        scores = out + self.offset
        if not deterministic:
            # The Gumbel trick samples every pool at once.
            scores = scores - torch.log(-torch.log(torch.rand_like(scores).clamp(1e-9, 1 - 1e-7)))
        return scores.argmax(dim=-1) * mask

    def judge(self, out: Tensor, mask: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy."""
        logs = log_softmax(out + self.offset, dim=-1)
        chosen = logs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        return (chosen * mask).sum(-1), (entropy * mask).sum(-1)
