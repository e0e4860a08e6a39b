"""The head of budgeted moves: a distribution over sequences of single replicas, and draws from it.

The torch twin of `hrl_planner.planner.moves`, over a batch with padding. A decision's probability
is the product over its moves, each a softmax over what the moves before leave allowed; `judge`
walks the moves given and finds the same masks. Behind a stop there is nothing to choose: those
moves are stops with probability 1. Padded pools may hold 0 replicas, so the masks exclude them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from agents.policies.heads import Head, gumbel
from agents.policies.network import LOWEST, Parts, Tensors, export, load, mean_and_max
from hrl_planner.encoding import PLAN
from hrl_planner.planner.moves import STOP, Room
from hrl_planner.planner.network import N_MOVE_INPUTS


class MovesHead(Head):
    """Up to so many moves of one replica, each within the budget.

    Args:
        features: numbers per pool that the network gives.
        n_moves: most moves of a decision.
        stop: log-odds of stopping against all moves together at first; above 0, a new policy is
            the planner it starts from.
        memory: chance that a decision keeps the luck of the step before, see `ResidualHead`.
    """

    def __init__(self, features: int, n_moves: int, stop: float, memory: float) -> None:
        """See the class."""
        super().__init__()
        self.move = nn.Linear(N_MOVE_INPUTS, features)
        self.pair, self.stop = nn.Linear(features, 2), nn.Linear(2 * features, 1)
        # The network's outputs are 0 at first, and so are all scores; gradients reach everything.
        for layer in (self.move.weight, self.move.bias, self.pair.bias):
            nn.init.zeros_(layer)
        nn.init.constant_(self.stop.bias, stop)
        self._n_moves, self._memory = n_moves, memory
        self._noise: Tensor | None = None

    def forget(self) -> None:
        """Draw the luck anew at the next step."""
        self._noise = None

    def act(self, out: Tensor, parts: Parts, deterministic: bool) -> Tensor:
        """Return decisions, int64 (B, moves)."""
        walk = _Walk(out, parts)
        noise = None if deterministic else self._luck(out)
        for k in range(self._n_moves):
            scores = self._scores(walk, k)
            if noise is None:
                stops = scores[:, STOP] >= scores[:, 1:].logsumexp(-1)
                choice = torch.where(stops, STOP, scores[:, 1:].argmax(-1) + 1)
            else:
                choice = (scores + noise[:, k]).argmax(-1)
            walk.take(choice)
        return torch.stack(walk.taken, dim=-1)

    def judge(self, out: Tensor, parts: Parts, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy; the latter is exact given the moves before each."""
        walk = _Walk(out, parts)
        log_probability = entropy = torch.zeros_like(out[:, 0, 0])
        for k in range(self._n_moves):
            logs = log_softmax(self._scores(walk, k), dim=-1)
            choice = actions[:, k].long()
            chosen = logs.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
            going = walk.going.to(out.dtype)
            log_probability = log_probability + chosen * going
            entropy = entropy - (logs.exp() * logs).sum(-1) * going
            walk.take(choice)
        return log_probability, entropy

    def export(self) -> Tensors:
        """Return the scorer's tensors."""
        return export(self)

    def load(self, tensors: Tensors) -> None:
        """Take over exported tensors."""
        load(self, tensors)

    def _scores(self, walk: _Walk, k: int) -> Tensor:
        """Return the scores of stopping, of one more in every pool and of one less, (B, 1 + 2P)."""
        there = torch.cat(walk.room.allowed(walk.moved), dim=-1)
        further = torch.stack(walk.room.inputs(walk.moved, 1.0 - k / self._n_moves), dim=-1)
        seen = torch.tanh(walk.out + self.move(further.to(walk.out.dtype)))
        moves = self.pair(seen).transpose(1, 2).flatten(1).masked_fill(~there, LOWEST)
        pooled = torch.cat(mean_and_max(seen, walk.mask), dim=-1)
        count = there.sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([self.stop(pooled) + count.log(), moves], dim=-1)

    def _luck(self, out: Tensor) -> Tensor:
        """Return noise that makes the largest score a draw, some of it as the step before."""
        fresh = gumbel(torch.empty(out.shape[0], self._n_moves, 1 + 2 * out.shape[1]))
        kept = self._noise
        if kept is not None and kept.shape == fresh.shape:
            keep = torch.rand(fresh.shape[0], 1, 1) < self._memory
            fresh = torch.where(keep, kept, fresh)
        self._noise = fresh
        return fresh


class _Walk:
    """Decisions of a batch under way.

    Attributes:
        out: of the network, (B, P, features).
        mask: pools there are, (B, P).
        room: what bounds the moves.
        moved: replicas moved so far, float64 (B, P).
        going: decisions that have not stopped, (B,).
        taken: the moves so far, each (B,).
    """

    def __init__(self, out: Tensor, parts: Parts) -> None:
        self.out, self.mask = out, parts.mask
        # Counts are exact in float64, and the masks then those of `best_moves` to the bit.
        self.room = Room.of(parts.limits.double(), parts.pools[..., PLAN].double())
        self.moved = torch.zeros_like(self.room.planned)
        self.going = torch.ones(out.shape[0], dtype=torch.bool)
        self.taken: list[Tensor] = []

    def take(self, choice: Tensor) -> None:
        """Make a move in every decision that has not stopped."""
        choice = torch.where(self.going, choice, STOP)
        self.taken.append(choice)
        self.going = self.going & (choice != STOP)
        n_pools = self.moved.shape[1]
        hot = one_hot(choice, 1 + 2 * n_pools)
        self.moved = self.moved + hot[:, 1 : 1 + n_pools] - hot[:, 1 + n_pools :]
