"""Training configs and the folders they begin: what is refused, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from agents.train.config import load_config
from hrl_planner.cli import app
from hrl_planner.errors import TrainingError
from hrl_planner.spec import ClusterSpec
from tests.tiny_training import ALLOCATOR, SCALER, TINY, run, tiny

SHORT = {**ALLOCATOR, "steps": 15}


def test_a_config_may_be_another_one_with_changes(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    path = tmp_path / "other.yaml"
    path.write_text(
        yaml.safe_dump({"base": "base.yaml", "name": "o", "set": {"stages.0.steps": 7}})
    )
    changed = load_config(path, ("stages.0.odds=3",))
    assert (changed.name, changed.stages[0].steps, changed.stages[0].odds) == ("o", 7, 3.0)
    assert changed.stages[1] == tiny().stages[1]
    path.write_text(yaml.safe_dump({"base": "base.yaml", "set": {"stages.9.steps": 7}}))
    with pytest.raises(TrainingError, match=r"set\.stages\.9\.steps: there is no '9'"):
        load_config(path)


def test_configs_that_change_each_other_are_refused(tmp_path: Path) -> None:
    for name, base in (("a", "a"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"base": f"{base}.yaml"}))
    for name in ("a", "b"):
        with pytest.raises(TrainingError, match=r"base: .*\.yaml is changed by this file itself"):
            load_config(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize("path", sorted(Path("experiments/train").glob("*.yaml")), ids=str)
def test_every_config_that_ships_is_valid(path: Path) -> None:
    assert load_config(path).stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nonsense=1", "nonsense: Extra inputs are not permitted"),
        ("stages.0.ppo.gamma=2", r"stages\[0\].ppo.gamma: Input should be less than or equal to 1"),
        ("stages.0.level=boss", r"stages\[0\].level"),
        ("randomise.scenarios=[nowhere]", "scenarios: unknown 'nowhere'"),
        ("randomise.needs={nowhere: 1.0}", "needs: unknown 'nowhere'"),
        ("randomise.loads={steady-no-flap: 0.0}", "loads: .* not above 0"),
        ("randomise.scrape_lag_s=[2, .inf]", r"scrape_lag_s\[1\]: .* finite number, got inf"),
        ("stages.0.ppo.learning_rate=.inf", "learning_rate: .* finite number, got inf"),
        ("stages.1.per_day=2", "per_day: 2 needs paired: true"),
        ("stages.0.ppo.batch=100000", "ppo.batch: 100000 is more than"),
        ("stages.7.steps=1", "there is no '7' to go into"),
        ("gamma", "not of the form field.field=value"),
    ],
)
def test_a_wrong_config_is_refused_by_field(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(TrainingError, match=message):
        load_config(path, (change,))


def test_a_stage_that_needs_an_allocator_says_so() -> None:
    with pytest.raises(TrainingError, match="no allocator is trained before this stage"):
        tiny(stages=[{**SCALER, "quotas": "learned"}, ALLOCATOR])
    with pytest.raises(TrainingError, match="a checkpoint needs one that trains"):
        tiny(stages=[SCALER])


def unservable(folder: Path) -> str:
    """A spec none of whose classes any pool can serve in time, so that no scenario fits it."""
    data = ClusterSpec.load("small").model_dump(mode="json", exclude_none=True)
    for slo_class in data["slo_classes"]:
        slo_class.update(ttft_ms=0.001, itl_ms=0.001)
    path = folder / "unservable.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": "missing.yaml"}, r"spec: spec missing\.yaml: no such file"),
        ({"spec": unservable}, "randomise.scenarios: .* no pool meets the targets"),
        ({"prior": "lpp"}, "prior: unknown policy 'lpp'"),
        (
            {"prior": "static", "stages": [{**SHORT, "head": "terms"}]},
            "prior: static cannot plan again",
        ),
        (
            {"stages": [ALLOCATOR, {**SCALER, "quotas": "lpp"}]},
            r"stages\.1\.quotas: unknown policy 'lpp'",
        ),
    ],
    ids=["spec", "scenario", "prior", "terms", "quotas"],
)
def test_a_name_that_stands_for_nothing_takes_no_folder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made = {name: value(tmp_path) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(TrainingError, match=f"training config tiny: {message}"):
        run(tiny(**made), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a,b", "a+b"])
def test_a_folder_that_a_policy_cannot_name_is_refused_at_once(tmp_path: Path, name: str) -> None:
    under = {**SCALER, "quotas": "learned"}
    with pytest.raises(TrainingError, match=r"stages\.1\.quotas: .*'[^']*a[,+]b'"):
        run(tiny(stages=[ALLOCATOR, under]), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_damaged_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: tiny\nspe")
    with pytest.raises(TrainingError, match=r"config\.yaml.*not valid YAML"):
        run(tiny(), tmp_path, resume=True)


def test_a_kill_while_a_folder_is_begun_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(stages=[SHORT])

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    assert any(tmp_path.iterdir())
    assert not (tmp_path / "config.yaml").exists()
    assert run(config, tmp_path) == tmp_path / "checkpoint"


def test_options_that_many_seeds_make_void_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    arguments = ["train", "--config", str(path), "--seeds", "3", "--out", str(tmp_path / "out")]
    for option in ("--seed", "--stage"):
        done = CliRunner().invoke(app, [*arguments, option, "1"])
        assert done.exit_code == 2
        assert f"{option}: " in done.output
    assert not (tmp_path / "out").exists()
