"""The torch twin of `hrl_planner.planner.network`, for training; and the critic beside it.

`SetNetwork` computes what `forward` there computes, over a batch with padding. `export` names its
tensors as `NetShape.tensors` does. The critic has an encoder of its own (sharing one lets the
value's gradient ruin a warm start) and may see arrivals to come, which stand behind the vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hrl_planner.encoding import N_CLASS_COLUMNS, N_POOL_COLUMNS, Layout
from hrl_planner.features import CLASS_FEATURES
from hrl_planner.limits import N_LIMIT_COLUMNS
from hrl_planner.planner.network import NORMALISED_LIMIT, NetShape

_CLASS_EXISTS = CLASS_FEATURES.index("itl_target")
LOWEST = -1e9

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Normaliser:
    """Mean and inverse deviation of every feature, fixed before training.

    Attributes:
        pool_mean: shape (N_POOL_COLUMNS,), and so on.
        pool_inverse_std: see above.
        class_mean: shape (N_CLASS_COLUMNS,).
        class_inverse_std: see above.
    """

    pool_mean: NDArray[np.float32]
    pool_inverse_std: NDArray[np.float32]
    class_mean: NDArray[np.float32]
    class_inverse_std: NDArray[np.float32]

    @classmethod
    def identity(cls) -> Normaliser:
        """Return one that changes nothing."""
        zeros, ones = np.zeros, np.ones
        return cls(
            zeros(N_POOL_COLUMNS, np.float32),
            ones(N_POOL_COLUMNS, np.float32),
            zeros(N_CLASS_COLUMNS, np.float32),
            ones(N_CLASS_COLUMNS, np.float32),
        )


@dataclass
class Parts:
    """A batch of vectors taken apart.

    Attributes:
        pools: (B, P, N_POOL_COLUMNS).
        mask: (B, P), True where there is a pool.
        classes: (B, C, N_CLASS_COLUMNS).
        class_mask: (B, C), True where there is a class.
        limits: (B, P, N_LIMIT_COLUMNS), see `hrl_planner.limits`.
        phase: (B,).
        further: (B, k), whatever stands behind the vector.
    """

    pools: Tensor
    mask: Tensor
    classes: Tensor
    class_mask: Tensor
    limits: Tensor
    phase: Tensor
    further: Tensor


def take_apart(observation: Tensor, layout: Layout) -> Parts:
    """Split a batch of observations, shape (B, >= layout.size)."""
    where = layout.slices
    lead = observation.shape[0]
    pools = observation[:, where["pools"]].reshape(lead, layout.max_pools, N_POOL_COLUMNS)
    classes = observation[:, where["classes"]].reshape(lead, layout.max_classes, N_CLASS_COLUMNS)
    limits = observation[:, where["limits"]]
    return Parts(
        pools=pools,
        mask=observation[:, where["mask"]] > 0.5,
        classes=classes,
        class_mask=classes[..., _CLASS_EXISTS] != 0.0,
        limits=limits.reshape(lead, layout.max_pools, N_LIMIT_COLUMNS),
        phase=observation[:, layout.size - 1],
        further=observation[:, layout.size :],
    )


def mean_and_max(h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and largest over the rows that exist, (B, n, k) -> two of (B, k)."""
    there = mask.unsqueeze(-1)
    count = there.sum(dim=1).clamp(min=1)
    mean = (h * there).sum(dim=1) / count
    highest = h.masked_fill(~there, LOWEST).amax(dim=1)
    return mean, highest


class SetEncoder(nn.Module):
    """Pools in the context of the classes: one row of numbers per pool.

    Args:
        shape: sizes.
        normaliser: of the features.
    """

    def __init__(self, shape: NetShape, normaliser: Normaliser) -> None:
        """See the class."""
        super().__init__()
        self.shape = shape
        sizes = shape.layers()
        self.classes = nn.Linear(*sizes["classes"])
        self.pools_1, self.pools_2 = nn.Linear(*sizes["pools_1"]), nn.Linear(*sizes["pools_2"])
        if shape.attention:
            self.query, self.key = nn.Linear(*sizes["query"]), nn.Linear(*sizes["key"])
            self.value, self.mix = nn.Linear(*sizes["value"]), nn.Linear(*sizes["mix"])
            # Attention begins as nothing and grows where it helps.
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
        for name, values in vars(normaliser).items():
            self.register_buffer(name, torch.from_numpy(np.asarray(values, np.float32).copy()))

    def forward(self, parts: Parts) -> Tensor:
        """Return (B, P, hidden); rows of padded pools mean nothing."""
        pools = self._normalised(parts.pools, "pool")
        classes = torch.tanh(self.classes(self._normalised(parts.classes, "class")))
        context = torch.cat(mean_and_max(classes, parts.class_mask), dim=-1)
        context = torch.cat([context, parts.phase.unsqueeze(-1)], dim=-1)
        n_pools = pools.shape[1]
        wide = torch.cat([pools, context.unsqueeze(1).expand(-1, n_pools, -1)], dim=-1)
        h = torch.tanh(self.pools_2(torch.tanh(self.pools_1(wide))))
        return self._attend(h, parts.mask) if self.shape.attention else h

    def _normalised(self, x: Tensor, what: str) -> Tensor:
        mean, inverse_std = self.get_buffer(f"{what}_mean"), self.get_buffer(f"{what}_inverse_std")
        return ((x - mean) * inverse_std).clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)

    def _attend(self, h: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(h) @ self.key(h).transpose(1, 2) / float(np.sqrt(self.shape.hidden))
        weights = torch.softmax(scores.masked_fill(~mask.unsqueeze(1), LOWEST), dim=-1)
        mixed: Tensor = h + self.mix(weights @ self.value(h))
        return mixed


class SetNetwork(nn.Module):
    """Encoder and head: numbers per pool.

    Args:
        shape: sizes.
        normaliser: of the features.
    """

    def __init__(self, shape: NetShape, normaliser: Normaliser) -> None:
        """See the class."""
        super().__init__()
        self.shape = shape
        self.encoder = SetEncoder(shape, normaliser)
        sizes = shape.layers()
        self.head_1, self.head_2 = nn.Linear(*sizes["head_1"]), nn.Linear(*sizes["head_2"])
        # The answer is 0 at first: that is the planner the policy starts from.
        nn.init.zeros_(self.head_2.weight)
        nn.init.zeros_(self.head_2.bias)

    def forward(self, parts: Parts) -> Tensor:
        """Return (B, P, outputs)."""
        h = self.encoder(parts)
        if self.shape.pooled:
            pooled = torch.cat(mean_and_max(h, parts.mask), dim=-1)
            h = torch.cat([h, pooled.unsqueeze(1).expand(-1, h.shape[1], -1)], dim=-1)
        out: Tensor = self.head_2(torch.tanh(self.head_1(h)))
        return out

    def export(self) -> Tensors:
        """Return all tensors."""
        return export(self)

    def load(self, tensors: Tensors) -> None:
        """Take over exported tensors."""
        load(self, tensors)


def export(module: nn.Module) -> Tensors:
    """Return all tensors by the names and in the shapes of `NetShape.tensors`."""
    tensors: Tensors = {}
    for name, value in module.state_dict().items():
        plain = value.detach().cpu().numpy().astype(np.float32)
        tensors[name.removeprefix("encoder.")] = (
            np.ascontiguousarray(plain.T) if name.endswith(".weight") else plain.copy()
        )
    return tensors


def load(module: nn.Module, tensors: Tensors) -> None:
    """Take over a module's share of exported tensors."""
    state = {}
    for name, value in module.state_dict().items():
        plain = tensors[name.removeprefix("encoder.")]
        plain = plain.T if name.endswith(".weight") else plain
        state[name] = torch.from_numpy(np.ascontiguousarray(plain)).reshape(value.shape)
    module.load_state_dict(state)


class Critic(nn.Module):
    """The value of a state, from all pools and, if given, what will arrive.

    Args:
        shape: sizes of its encoder.
        normaliser: of the features.
        further: numbers behind the vector.
    """

    def __init__(self, shape: NetShape, normaliser: Normaliser, further: int) -> None:
        """See the class."""
        super().__init__()
        self.encoder = SetEncoder(shape, normaliser)
        self.head = nn.Sequential(
            nn.Linear(2 * shape.hidden + further, shape.hidden),
            nn.Tanh(),
            nn.Linear(shape.hidden, 1),
        )

    def forward(self, parts: Parts) -> Tensor:
        """Return (B, 1)."""
        pooled = torch.cat(mean_and_max(self.encoder(parts), parts.mask), dim=-1)
        value: Tensor = self.head(torch.cat([pooled, parts.further], dim=-1))
        return value
