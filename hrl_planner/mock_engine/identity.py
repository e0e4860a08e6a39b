"""Who an engine is, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hrl_planner.mock_engine.config import Role


class Life(Enum):
    """What /health says, and who may still come in; states in their order."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class Identity:
    """What an engine says of itself.

    Attributes:
        max_model_len: tokens of prompt and answer together.
        address: where other workers reach it.
    """

    model: str
    role: Role
    default_osl: int
    max_model_len: int
    block_size: int
    tp_size: int
    address: str
