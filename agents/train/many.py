"""Many seeds of one config side by side, each in a folder of its own, all resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agents.train.config import TrainConfig, parse
from agents.train.executors import open_executor
from hrl_planner.errors import HrlPlannerError, TrainingError

_POLL_S = 1.0
STATUS_FILE = "status.json"

OnStatus = Callable[[int, dict[str, Any]], None]
"""Told a seed and what its run last said of itself."""


def seed_folder(folder: Path, seed: int) -> Path:
    """Return where the run of a seed goes."""
    return folder / f"seed-{seed}"


def train_many(
    config: TrainConfig,
    folder: Path,
    seeds: Iterable[int],
    *,
    backend: str,
    resume: bool,
    on_status: OnStatus,
) -> dict[int, str]:
    """Train one run per seed.

    Args:
        config: the run; its seed is replaced.
        folder: of all runs.
        seeds: which.
        backend: `local` or `ray`.
        resume: continue what is there.
        on_status: called about once a second for every run.

    Returns:
        Per seed the checkpoint's folder, or what went wrong behind `failed: `.

    Raises:
        TrainingError: a folder is taken and `resume` is not given; an unknown backend.
        KeyboardInterrupt: Ctrl-C; every run is saved at its last update.
    """
    places = {seed: seed_folder(folder, seed) for seed in seeds}
    taken = [str(place) for place in places.values() if (place / "config.yaml").is_file()]
    if taken and not resume:
        raise TrainingError(
            f"training folder {taken[0]}: holds a run already; continue it with --resume, or "
            "choose another --out"
        )
    outcomes: dict[int, str] = {}
    with open_executor(backend) as executor:
        handles = {
            executor.submit(
                train_one, config.replace(seed=seed, threads=1).model_dump(), str(place)
            ): seed
            for seed, place in places.items()
        }
        waiting = list(handles)
        while waiting:
            for handle in executor.finished(waiting, _POLL_S):
                waiting.remove(handle)
                outcomes[handles[handle]] = executor.result(handle)
            for seed, place in places.items():
                on_status(seed, read_status(place))
    return outcomes


def train_one(data: dict[str, Any], folder: str) -> str:
    """Train one run to its end; the job that executors carry.

    Returns:
        The checkpoint's folder, or `failed: ` and why.
    """
    from agents.train.run import train

    try:
        config = parse(data, "training config")
        path = train(config, Path(folder), resume=True, on_progress=lambda *_: None)
    except HrlPlannerError as error:
        return f"failed: {error}"
    return str(path)


def read_status(folder: Path) -> dict[str, Any]:
    """Return what a run last said of itself, empty before it did."""
    try:
        status = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
