"""Many seeds of one config side by side, each in a folder of its own, all resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agents.train.config import TrainConfig, parse
from agents.train.executors import Executor, JobFailed, open_executor
from hrl_planner.errors import TrainingError

_POLL_S = 1.0
_FAILED = "failed: "
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
        TrainingError: a folder is taken and `resume` is not given; an unknown backend; the config
            names what there is not, see `agents.train.run.check`.
        KeyboardInterrupt: Ctrl-C; every run is saved at its last update.
    """
    from agents.train.run import check  # which reads this module, and brings torch

    check(config, folder)
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
                outcomes[handles[handle]] = _outcome(executor, handle)
            for seed, place in places.items():
                on_status(seed, read_status(place))
    return outcomes


def failed(outcome: str) -> bool:
    """Whether a run of `train_many` went wrong."""
    return outcome.startswith(_FAILED)


def train_one(data: dict[str, Any], folder: str) -> str:
    """Train one run to its end and return the checkpoint's folder; the job executors carry."""
    from agents.train.run import train

    config = parse(data, "training config")
    return str(train(config, Path(folder), resume=True, on_progress=lambda *_: None))


def _outcome(executor: Executor, handle: Any) -> str:
    try:
        return str(executor.result(handle))
    except JobFailed as error:
        return f"{_FAILED}{error}"


def read_status(folder: Path) -> dict[str, Any]:
    """Return what a run last said of itself, empty before it did."""
    try:
        status = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
