"""The smallest training runs that show something, and how tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.train.config import TrainConfig, parse
from agents.train.run import train
from agents.train.state import STATE_FILE

SCALER = {
    "level": "scaler", "steps": 120, "n_envs": 2, "n_steps": 30, "critic_only": 1,
    "ppo": {"batch": 20, "epochs": 2, "learning_rate": 0.01},
}  # fmt: skip
ALLOCATOR = {
    "level": "allocator", "steps": 30, "n_envs": 3, "n_steps": 5, "critic_only": 0, "average": 0.5,
    "ppo": {"batch": 15, "epochs": 2, "learning_rate": 0.01},
}  # fmt: skip
TINY: dict[str, Any] = {
    "name": "tiny",
    "spec": "small",
    "network": {"hidden": 8, "scaler_hidden": 6, "class_hidden": 4},
    "randomise": {
        "durations_s": [300.0],
        "load": [0.2, 0.4],
        "scenarios": ["steady-no-flap"],
        "as_told": 0.0,
    },
    "validation": {"episodes": 2, "every": 1, "final": 2},
    "stages": [SCALER, ALLOCATOR],
}


def tiny(**changes: Any) -> TrainConfig:
    return parse({**TINY, **changes}, "test")


def run(config: TrainConfig, folder: Path, **more: Any) -> Path | None:
    return train(config, folder, **{"resume": False, "on_progress": lambda *_: None, **more})


def weights(folder: Path) -> dict[str, np.ndarray]:
    state = torch.load(folder / STATE_FILE, weights_only=True)
    return {name: value.numpy() for name, value in state["policy"].items()}
