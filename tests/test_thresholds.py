"""Tuned thresholds: the shipped file, bad files, and a search that never ends below its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.thresholds.__main__ import main
from hrl_planner.errors import PolicyError
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RuleParameters
from hrl_planner.planner.thresholds import read_parameters
from hrl_planner.spec import ClusterSpec


def test_the_reference_spec_has_tuned_thresholds() -> None:
    policy = make_policy("thresholds")
    policy.reset(PlanContext(ClusterSpec.load("reference")))
    assert policy.parameters != RuleParameters()  # type: ignore[attr-defined]


def test_a_spec_without_a_file_is_told_how_to_get_one() -> None:
    with pytest.raises(PolicyError, match=r"agents\.thresholds --spec small"):
        make_policy("thresholds").reset(PlanContext(ClusterSpec.load("small")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {upp: 1}", "upp"),
        ("parameters: {up: high}", "up: 'high' is not a number"),
        ("nothing: 1", "parameters: missing"),
        ("a: [", "not valid YAML"),
        ("- up", "this is list"),
        ("parameters: {up: 1, up: 2}", "'up' appears twice"),
        ("parameters: \xff", "cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(PolicyError, match=f"{file}.*{message}"):
        make_policy(f"thresholds:file={file}")


def test_saved_thresholds_are_read_back(tmp_path: Path) -> None:
    tune = pytest.importorskip("agents.thresholds.tune")
    parameters = RuleParameters(up=0.5, wait=7.0)
    tune.save(tmp_path / "t.yaml", parameters, "small", "made by a test")
    assert read_parameters(tmp_path / "t.yaml") == parameters


@pytest.mark.slow
def test_tuning_never_ends_below_the_defaults() -> None:
    tune = pytest.importorskip("agents.thresholds.tune")
    spec = ClusterSpec.load("small")
    _, best, default = tune.tune(spec, generations=1, population=3, seed=0)
    assert best >= default


@pytest.mark.parametrize("words", [["--population", "1"], ["--seed", "-1"], ["--generations", "x"]])
def test_numbers_no_search_can_have_are_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["thresholds", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and f"argument {words[0]}" in capsys.readouterr().err
