"""Hyper-parameter search: Optuna asks, training runs answer.

A tuning config names a training config, the stage that is judged, and a space: for each value of
the config, by its path, a range or choices. Each trial is a training run in a folder of its own
with its own seed; its value is the gain over action 0 on validation days. The study is a file, so
that a search can be stopped and resumed; one call at a time works on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agents.train.alone import alone
from agents.train.config import TrainConfig, load_config, parse
from agents.train.executors import Executor, JobFailed, open_executor
from agents.train.many import read_status
from agents.train.run import check, train
from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import TrainingError

_POLL_S = 1.0
FAILURE = "failure"
"""Attribute of a trial that failed: why."""
_ABANDONED = "abandoned"
_SEARCH = "search"

OnTrial = Callable[[optuna.Study, int], None]
"""Told the study and the number of a trial that ended."""


class Dimension(BaseModel):
    """Values one path may take: choices, or a range."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if len(bounds) != (2 if self.choices is None else 0):
            raise ValueError("give low and high, or choices")
        if bounds != sorted(bounds):
            raise ValueError(f"low: {self.low} is above high, {self.high}")
        if self.log and not (bounds and bounds[0] > 0):
            raise ValueError(f"log: needs a range above 0, got low {self.low}")
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
    seed: int = Field(0, ge=0)


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
    config = config.model_copy(update={"base": path.parent / config.base})
    _check_against_base(config, path)
    return config


def _check_against_base(config: TuneConfig, path: Path) -> None:
    """Refuse what would make every trial fail."""
    base = load_config(config.base)
    if config.stage > len(base.stages):
        raise TrainingError(
            f"{path}: stage: {config.base} has no more than {len(base.stages)}, got {config.stage}"
        )
    for name in config.space:
        if not _exists(base, name):
            raise TrainingError(f"{path}: space: {config.base} has no field {name!r}")


def _exists(place: Any, path: str) -> bool:
    for name in path.split("."):
        if isinstance(place, BaseModel) and name in type(place).model_fields:
            place = getattr(place, name)
        elif isinstance(place, tuple) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict):  # of names that are the user's
            place = place.get(name)
        else:
            return False
    return True


def open_study(config: TuneConfig, folder: Path) -> optuna.Study:
    """Return the study of a folder, new or continued.

    Raises:
        TrainingError: the folder holds a study of another search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(
        study_name="tune", storage=storage, direction="maximize", load_if_exists=True
    )
    _check_same(config, study, folder)
    # Were it the same at every call, each would begin with the random points of the first.
    seed = config.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study


def _check_same(config: TuneConfig, study: optuna.Study, folder: Path) -> None:
    """Refuse to count trials of another search; a study that is new is marked as of this one."""
    search = config.model_dump(mode="json", exclude={"base", "seed"})
    search["base"] = load_config(config.base).model_dump(mode="json")
    known = study.user_attrs.get(_SEARCH, search) if _ended(study) else search
    different = [name for name in search if search[name] != known.get(name)]
    if different:
        raise TrainingError(
            f"study {folder}: was begun with another search ({', '.join(different)} differ); "
            "choose another --out"
        )
    study.set_user_attr(_SEARCH, search)


def tune(
    config: TuneConfig, folder: Path, *, trials: int, backend: str, on_trial: OnTrial
) -> optuna.Study:
    """Run trials until the study has so many that ended.

    A trial that fails, or whose values do not go together, counts as one that ended; one that was
    under way when an earlier call was stopped does not.

    Args:
        config: the search.
        folder: of the study and its runs.
        trials: in all, those of earlier calls included.
        backend: `local` or `ray`.
        on_trial: told of every trial that ended.

    Raises:
        TrainingError: another call works on the study; the base config names what there is not,
            see `agents.train.run.check`; an unknown backend.
        KeyboardInterrupt: Ctrl-C; trials that ended are kept.
    """
    check(load_config(config.base), folder)
    with alone(folder, "study", "study.lock"), open_executor(backend) as executor:
        study = open_study(config, folder)
        _abandon_orphans(study)
        running: dict[Any, optuna.Trial] = {}
        while True:
            while len(running) < executor.width and _ended(study) + len(running) < trials:
                trial = study.ask()
                try:
                    settings = _settings(config, trial)
                except TrainingError as error:
                    _tell(study, trial, error, on_trial)
                    continue
                place = folder / f"trial-{trial.number}"
                job = executor.submit(judge_one, settings.model_dump(), config.stage, str(place))
                running[job] = trial
            if not running:
                return study
            for job in executor.finished(list(running), _POLL_S):
                _tell(study, running.pop(job), _outcome(executor, job), on_trial)


def judge_one(data: dict[str, Any], stage: int, folder: str) -> float:
    """Train up to a stage and return its gain on validation days; the job executors carry."""
    train(parse(data, "trial"), Path(folder), resume=True, on_progress=lambda *_: None, only=stage)
    status = read_status(Path(folder))
    return float(status["best_score"]) - float(status["prior_score"])


def _settings(config: TuneConfig, trial: optuna.Trial) -> TrainConfig:
    changes = [f"{path}={dim.suggest(trial, path)}" for path, dim in config.space.items()]
    return load_config(config.base, (*changes, f"seed={trial.number}", "threads=1"))


def _outcome(executor: Executor, job: Any) -> float | JobFailed:
    try:
        return float(executor.result(job))
    except JobFailed as error:
        return error


def _tell(
    study: optuna.Study, trial: optuna.Trial, outcome: float | Exception, on_trial: OnTrial
) -> None:
    """Keep what a trial came to."""
    if isinstance(outcome, Exception):
        trial.set_user_attr(FAILURE, str(outcome))  # first: what has ended cannot be changed
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, outcome)
    on_trial(study, trial.number)


def _ended(study: optuna.Study) -> int:
    """Return how many trials ended, those without a result included."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    abandoned = study.user_attrs.get(_ABANDONED, [])
    trials = study.get_trials(deepcopy=False, states=states)
    return sum(trial.number not in abandoned for trial in trials)


def _abandon_orphans(study: optuna.Study) -> None:
    """Trials that ran when an earlier call was stopped will never answer."""
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    orphans = [trial.number for trial in running]
    study.set_user_attr(_ABANDONED, [*study.user_attrs.get(_ABANDONED, []), *orphans])
    for number in orphans:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
