"""The state of training between two updates, on disk: what `--resume` continues from.

Tensors, numbers and generator states, read with torch's `weights_only`, so that a state file runs
no code either. Written whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from agents.train.stage import Extent
from hrl_planner.errors import TrainingError

STATE_FILE = "state.pt"


def snapshot(model: PPO, extent: Extent, progress: dict[str, Any]) -> dict[str, Any]:
    """Return everything that training continues from.

    Args:
        model: the learner.
        extent: of the features seen.
        progress: counters and the best weights, plain values and tensors.
    """
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": [
            str(kind),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(place),
            int(has_gauss),
            float(gauss),
        ],
        "reward": [float(env.ret_rms.mean), float(env.ret_rms.var), float(env.ret_rms.count)],
        "extent": [torch.from_numpy(extent.pools.copy()), torch.from_numpy(extent.classes.copy())],
        "progress": progress,
    }


def restore(model: PPO, state: dict[str, Any]) -> Extent:
    """Put a learner back to where a snapshot was taken; return the extent of its features."""
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = state["num_timesteps"]
    model._n_updates = state["n_updates"]
    torch.set_rng_state(state["torch_rng"])
    kind, keys, place, has_gauss, gauss = state["numpy_rng"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    mean, var, count = state["reward"]
    env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count = np.array(mean), np.array(var), count
    pools, classes = state["extent"]
    return Extent(pools.numpy(), classes.numpy())


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a snapshot in place of the last one."""
    fresh = folder / f".{STATE_FILE}.new"
    torch.save(state, fresh)
    os.replace(fresh, folder / STATE_FILE)


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the last snapshot, None if there is none.

    Raises:
        TrainingError: the file is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise TrainingError(
            f"training state {path}: cannot be read ({type(error).__name__}: {error}); "
            "delete the stage's folder to train that stage anew"
        ) from error
    return state
