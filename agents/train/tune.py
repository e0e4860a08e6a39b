"""Hyper-parameter search: Optuna asks, training runs answer.

A tuning config names a training config, the stage that is judged, and a space: for each value of
the config, by its path, a range or choices. Each trial is a training run in a folder of its own
with its own seed; its value is the gain over action 0 on validation days. The study is a file, so
that a search can be stopped, resumed and joined by more machines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agents.train.config import TrainConfig, load_config
from agents.train.executors import open_executor
from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import HrlPlannerError, TrainingError

_POLL_S = 1.0


class Dimension(BaseModel):
    """Values one path may take: choices, or a range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None):
            raise ValueError("give low and high, or choices")
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Let a trial choose."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, float(self.low), float(self.high), log=self.log)


class TuneConfig(BaseModel):
    """A search.

    Attributes:
        base: training config, relative to the file that names it.
        stage: the stage that is judged, from 1; later ones are not trained.
        space: what varies, by path in the training config.
        seed: of the search.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path
    stage: int = Field(ge=1)
    space: dict[str, Dimension] = Field(min_length=1)
    seed: int = 0


def load_tuning(path: Path) -> TuneConfig:
    """Read a tuning config.

    Raises:
        TrainingError: naming the file, the field and the value.
    """
    data = read_mapping(path, "tuning config", TrainingError)
    try:
        config = TuneConfig.model_validate(data)
    except ValidationError as error:
        raise TrainingError(describe(error, str(path))) from error
    return config.model_copy(update={"base": path.parent / config.base})


def open_study(config: TuneConfig, folder: Path) -> optuna.Study:
    """Return the study of a folder, new or continued."""
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.create_study(
        study_name="tune",
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        direction="maximize",
        load_if_exists=True,
    )


def tune(
    config: TuneConfig,
    folder: Path,
    *,
    trials: int,
    backend: str,
    on_trial: Callable[[optuna.Study, int], None],
) -> optuna.Study:
    """Run trials until the study has so many that ended.

    Args:
        config: the search.
        folder: of the study and its runs.
        trials: in all, those of earlier calls included.
        backend: `local` or `ray`.
        on_trial: told the study and the number of every trial that ended.
    """
    study = open_study(config, folder)
    _abandon_orphans(study)
    with open_executor(backend) as executor:
        running: dict[Any, optuna.Trial] = {}
        while True:
            ended = len(_ended(study))
            while len(running) < executor.width and ended + len(running) < trials:
                trial = study.ask()
                settings = _settings(config, trial)
                place = folder / f"trial-{trial.number}"
                job = executor.submit(judge_one, settings.model_dump(), config.stage, str(place))
                running[job] = trial
            if not running:
                return study
            for handle in executor.finished(list(running), _POLL_S):
                trial = running.pop(handle)
                value = executor.result(handle)
                if isinstance(value, str):
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    trial.set_user_attr("failure", value)
                else:
                    study.tell(trial, value)
                on_trial(study, trial.number)


def judge_one(data: dict[str, Any], stage: int, folder: str) -> float | str:
    """Train up to a stage and return its gain on validation days, or why there is none."""
    from agents.train.config import parse
    from agents.train.many import read_status
    from agents.train.run import train

    try:
        train(
            parse(data, "trial"), Path(folder), resume=True, on_progress=lambda *_: None, only=stage
        )
    except HrlPlannerError as error:
        return str(error)
    status = read_status(Path(folder))
    return float(status["best_score"]) - float(status["prior_score"])


def _settings(config: TuneConfig, trial: optuna.Trial) -> TrainConfig:
    changes = [f"{path}={dim.suggest(trial, path)}" for path, dim in config.space.items()]
    return load_config(config.base, (*changes, f"seed={trial.number}", "threads=1"))


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    return study.get_trials(deepcopy=False, states=states)


def _abandon_orphans(study: optuna.Study) -> None:
    """Trials that ran when an earlier call was stopped will never answer."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
