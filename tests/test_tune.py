"""The search for hyper-parameters: what it tries, what it survives, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from typer.testing import CliRunner

from agents.train import tune as tuning
from agents.train.executors import JobFailed
from agents.train.tune import TuneConfig, load_tuning, open_study, tune
from hrl_planner.cli import app
from hrl_planner.errors import TrainingError
from tests.tiny_training import ALLOCATOR, TINY

RATE = {"stages.0.ppo.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
# Three clusters: two steps of each make no batch of 15.
STEPS = {"stages.0.n_steps": {"choices": [2, 5]}}


def search(folder: Path, **changes: Any) -> Path:
    """Write a search over a tiny training config of one stage."""
    base = {**TINY, "stages": [{**ALLOCATOR, "steps": 15}], **changes.pop("base", {})}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    path = folder / "tune.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "stage": 1, "space": RATE, **changes}))
    return path


class Here:
    """Answers at once what a judge says of the drawn stage, or fails with what it raises."""

    width = 2

    def __init__(self, judge: Callable[[dict[str, Any]], float]) -> None:
        self._judge = judge
        self._drawn: dict[str, dict[str, Any]] = {}

    def submit(self, job: Any, data: dict[str, Any], stage: int, folder: str) -> str:
        self._drawn[folder] = data["stages"][stage - 1]
        return folder

    def finished(self, handles: Sequence[str], timeout_s: float) -> list[str]:
        return list(handles[:1])

    def result(self, handle: str) -> float:
        return self._judge(self._drawn[handle])

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], float]], None]:
    """Let a function stand in for the training runs of a search."""

    def by(judge: Callable[[dict[str, Any]], float]) -> None:
        @contextmanager
        def opened(backend: str) -> Iterator[Here]:
            yield Here(judge)

        monkeypatch.setattr(tuning, "open_executor", opened)

    return by


def go(config: TuneConfig, folder: Path, trials: int, on_trial: Any = None) -> optuna.Study:
    told = on_trial or (lambda *_: None)
    return tune(config, folder, trials=trials, backend="local", on_trial=told)


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def test_a_search_that_goes_on_tries_other_points(tmp_path: Path, judged: Any) -> None:
    judged(lambda stage: -stage["ppo"]["learning_rate"])
    config = load_tuning(search(tmp_path))
    go(config, tmp_path / "out", 3)
    study = go(config, tmp_path / "out", 6)
    assert len({trial.params["stages.0.ppo.learning_rate"] for trial in study.trials}) == 6
    again = go(config, tmp_path / "again", 3)
    assert [t.params for t in again.trials] == [t.params for t in study.trials[:3]]


def test_values_that_do_not_go_together_fail_one_trial_not_the_search(
    tmp_path: Path, judged: Any
) -> None:
    judged(lambda stage: 0.1)
    study = go(load_tuning(search(tmp_path, space=STEPS)), tmp_path / "out", 8)
    for trial in study.trials:
        fits = trial.params["stages.0.n_steps"] == 5
        assert trial.state == (TrialState.COMPLETE if fits else TrialState.FAIL)
        assert fits or "ppo.batch: 15 is more than" in trial.user_attrs["failure"]
    assert len(set(states(study))) == 2


def test_a_run_that_fails_fails_one_trial_not_the_search(tmp_path: Path, judged: Any) -> None:
    answers = iter([0.1, None, 0.2])

    def judge(stage: dict[str, Any]) -> float:
        answer = next(answers)
        if answer is None:
            raise JobFailed("its process died")
        return answer

    judged(judge)
    arguments = ["tune", "--config", str(search(tmp_path)), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--trials", "3"])
    assert done.exit_code == 0, done.output
    assert "gain +0.1000" in done.output and "gain +0.2000" in done.output
    assert "failed: its process died" in done.output


def test_trials_of_a_call_that_was_stopped_do_not_count(tmp_path: Path, judged: Any) -> None:
    judged(lambda stage: 0.1)
    config = load_tuning(search(tmp_path))
    (tmp_path / "out").mkdir()
    open_study(config, tmp_path / "out").ask()
    study = go(config, tmp_path / "out", 2)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len(go(config, tmp_path / "out", 2).trials) == 3


def test_a_study_belongs_to_one_search(tmp_path: Path, judged: Any) -> None:
    judged(lambda stage: 0.1)
    go(load_tuning(search(tmp_path)), tmp_path / "out", 1)
    other_base = {"base": {"seed": 7}}
    for changes, named in (({"space": STEPS}, "space"), (other_base, "base")):
        with pytest.raises(TrainingError, match=f"another search \\({named} differ"):
            go(load_tuning(search(tmp_path, **changes)), tmp_path / "out", 2)
    assert len(go(load_tuning(search(tmp_path)), tmp_path / "out", 2).trials) == 2


def test_one_call_at_a_time_works_on_a_study(tmp_path: Path, judged: Any) -> None:
    judged(lambda stage: 0.1)
    config = load_tuning(search(tmp_path))

    def join(study: optuna.Study, number: int) -> None:
        with pytest.raises(TrainingError, match="another call works in it"):
            go(config, tmp_path / "out", 4)

    study = go(config, tmp_path / "out", 2, join)
    assert states(study) == [TrialState.COMPLETE] * 2


@pytest.mark.slow
def test_a_search_trains_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = ["tune", "--config", str(search(tmp_path)), "--out", str(tmp_path / "out")]
    for trials in (1, 2):
        done = CliRunner().invoke(app, [*arguments, "--trials", str(trials)])
        assert done.exit_code == 0, done.output
    assert "trial 1: gain" in done.output and "trial 0: gain" not in done.output


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"low": 1}, "give low and high, or choices"),
        ({"low": 1, "high": 2, "choices": [1]}, "give low and high, or choices"),
        ({"low": 1, "choices": [1]}, "give low and high, or choices"),
        ({"choices": []}, "choices: .* at least 1 item"),
        ({"low": 2.0, "high": 1.0}, "low: 2.0 is above high, 1.0"),
        ({"low": 0.0, "high": 1.0, "log": True}, "log: needs a range above 0, got low 0.0"),
        ({"choices": [1], "log": True}, "log: needs a range"),
        ({"low": 1.0, "high": float("inf")}, "high.* finite number"),
    ],
)
def test_a_range_that_is_none_is_refused(
    tmp_path: Path, dimension: dict[str, Any], message: str
) -> None:
    path = search(tmp_path, space={"stages.0.std": dimension})
    with pytest.raises(TrainingError, match=rf"tune\.yaml: space\.stages\.0\.std.*{message}"):
        load_tuning(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 2}, r"stage: .*base\.yaml has no more than 1, got 2"),
        ({"space": {"stages.1.std": {"choices": [1]}}}, "space: .* no field 'stages.1.std'"),
        ({"space": {"stages.0.sdt": {"choices": [1]}}}, "space: .* no field 'stages.0.sdt'"),
        ({"base": {"stages": []}}, "stages: .* at least 1 item"),
    ],
)
def test_a_search_that_does_not_fit_its_base_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        load_tuning(search(tmp_path, **changes))


def test_names_of_the_users_own_may_vary(tmp_path: Path) -> None:
    space = {"randomise.loads.steady-no-flap": {"low": 1.0, "high": 2.0}}
    assert list(load_tuning(search(tmp_path, space=space)).space) == list(space)


def test_a_wrong_search_begins_no_folder(tmp_path: Path) -> None:
    path, out = search(tmp_path, base={"prior": "lpp"}), tmp_path / "out"
    done = CliRunner().invoke(app, ["tune", "--config", str(path), "--out", str(out)])
    assert done.exit_code == 2
    assert "prior: unknown policy 'lpp'" in done.output
    assert not out.exists()
