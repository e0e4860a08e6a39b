"""One network of several: it answers their mean, says who taught it, and refuses strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.bounds import tighten
from agents.train import distil as module
from agents.train.distil import distil
from agents.train.shrink import Shrunk
from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays
from hrl_planner.cli import app
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.allocator import N_TERMS, by_role
from hrl_planner.planner.checkpoint import NetworkInfo, Ranges
from hrl_planner.planner.learned import LearnedAllocator
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.scaler import outputs_of
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.scenarios import find_scenario
from tests.networks import ALLOCATOR, SCALER, manifest, tensors, wide_ranges

TERMS = ALLOCATOR._replace(outputs=N_TERMS)
SPEC = ClusterSpec.load("small")
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "spec": "small",
    "network": {"hidden": 12, "class_hidden": 6},
    "randomise": {"durations_s": [600.0], "scenarios": ["steady-no-flap"], "load": [0.2, 0.5]},
    "validation": {"final": 2},
    "stages": [
        {
            "level": "allocator", "head": "terms", "steps": 1, "n_envs": 8, "n_steps": 8,
            "ppo": {"batch": 2},
        }
    ],
}  # fmt: skip


def teacher(folder: Path, seed: int, ranges: Ranges | None = None, **changes: Any) -> Path:
    made = manifest(ranges=ranges).model_copy(
        update={
            "name": f"teacher-{seed}",
            "head": "terms",
            "allocator": NetworkInfo.of(TERMS),
            "training": {"config": {**CONFIG, "seed": seed}},
            **changes,
        }
    )
    path = folder / f"teacher-{seed}"
    checkpoints.save(path, made, tensors(TERMS, seed), tensors(SCALER, 2), "a card")
    return path


def run(folders: list[Path], out: Path, **more: Any) -> module.Distilled:
    given = {"name": "student", "rounds": 4, "seed": 1, "on_round": lambda *_: None}
    return distil(folders, out, **{**given, **more})


def answers(path: Path, tightness: float) -> list[np.ndarray]:
    """What a checkpoint says of every role while the LP runs a cluster of so many GPUs."""
    case = find_scenario("steady-no-flap").build(SPEC, 2000, 600.0, 0.35)
    spec = tighten(case.spec, 0.35 * tightness)
    allocator = LearnedAllocator(checkpoints.load(path).allocator, make_policy("lp"), head="terms")
    allocator.reset(PlanContext(spec))
    simulation = Simulation(spec, case.trace, seed=0)
    found = []
    for t_s in range(60, 480, 60):
        simulation.advance_to(float(t_s))
        seen = simulation.observe()
        plan = allocator.planned(seen)
        net, shape = allocator.network
        vector = allocator.vector(seen, plan)
        out = outputs_of(net, shape, vector, len(spec.pools), len(spec.slo_classes))
        found.append(by_role(out.astype(np.float64), allocator.reader.role))
        simulation.apply(loop.within_budget(plan, seen, BudgetArrays.from_spec(spec)))
    return found


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    folder = tmp_path_factory.mktemp("distil")
    low = Ranges(**{**wide_ranges().model_dump(), "classes": wide_ranges(20.0).classes})
    folders = [teacher(folder, 1), teacher(folder, 2, low), teacher(folder, 3)]
    with pytest.MonkeyPatch.context() as patch:
        # Random teachers gain nothing, and nothing of them would be left.
        patch.setattr(module, "shrink", lambda env, policy, best: (best, Shrunk(1.0, 0, 0, 0)))
        run(folders, folder / "student", rounds=12)
    return folders, folder / "student"


def test_the_student_answers_the_mean_of_its_teachers(student: tuple[list[Path], Path]) -> None:
    folders, path = student
    wanted = np.mean([answers(folder, 0.8) for folder in folders], axis=0)
    missed = np.square(answers(path, 0.8) - wanted).mean() / np.square(wanted).mean()
    assert missed < 0.2
    # Which is not what any of them says alone.
    of_each = (np.square(answers(folder, 0.8) - wanted).mean() for folder in folders)
    alone = [found / np.square(wanted).mean() for found in of_each]
    assert min(alone) > 2 * missed
    assert checkpoints.load(path).manifest.metrics["missed"] < 0.4


def test_with_more_gpus_than_the_teachers_ever_had_the_student_leaves_the_plan_alone(
    student: tuple[list[Path], Path],
) -> None:
    folders, path = student
    taught = np.mean([answers(folder, 3.0) for folder in folders], axis=0)
    assert np.abs(answers(path, 3.0)).mean() < 0.4 * np.abs(taught).mean()


def test_teachers_who_know_ample_clusters_are_asked_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shrink", lambda env, policy, best: (best, Shrunk(1.0, 0, 0, 0)))
    states = {}
    for ample in (0.0, 0.5):
        config = {**CONFIG, "randomise": {**CONFIG["randomise"], "ample": ample}}
        folder = tmp_path / str(ample)
        made = [teacher(folder, seed, training={"config": config}) for seed in (1, 2)]
        run(made, folder / "student", rounds=1)
        states[ample] = checkpoints.load(folder / "student").manifest.training["states"]
    # Eight environments of eight steps, and half as many of the lesson that the others need.
    assert states == {0.0: 96, 0.5: 64}


def test_a_student_says_who_taught_it_and_knows_what_they_saw(
    student: tuple[list[Path], Path],
) -> None:
    folders, path = student
    made = checkpoints.load(path).manifest
    assert [t["seed"] for t in made.training["teachers"]] == [1, 2, 3]
    assert made.training["teachers"][0]["digest"] == checkpoints.digest(folders[0])
    assert made.name == "student"
    assert set(made.ranges.classes.values()) == {(-20.0, 20.0)}
    assert set(made.ranges.pools.values()) == {(-10.0, 10.0)}
    shown = CliRunner().invoke(app, ["checkpoint", "show", str(path)])
    assert shown.exit_code == 0 and "terms head" in shown.output


def test_the_same_seed_gives_the_same_student_whose_answers_are_scaled(tmp_path: Path) -> None:
    folders = [teacher(tmp_path, 1), teacher(tmp_path, 2)]
    arguments = ["distil", *map(str, folders), "--rounds", "2", "--seed", "4"]
    for name in ("one", "other"):
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    one, other = (
        checkpoints.read_tensors(tmp_path / name / checkpoints.ALLOCATOR_FILE)
        for name in ("one", "other")
    )
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
    found = checkpoints.load(tmp_path / "one").manifest.metrics
    assert f"scaled by {found['final_scale']:g}" in done.output
    assert found["final_gain"] >= 0.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prior": "static"}, "prior differs"),
        ({"spec": {"name": "other"}}, "spec differs"),
        ({"training": {}}, "training.config is missing"),
    ],
)
def test_strangers_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folders = [teacher(tmp_path, 1), teacher(tmp_path, 2, **changes)]
    done = CliRunner().invoke(app, ["distil", *map(str, folders), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert named in done.output and "teacher-2" in done.output.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_in_it_is_refused_at_once(tmp_path: Path) -> None:
    folders = [teacher(tmp_path, seed) for seed in (1, 2)]
    refused = CliRunner().invoke(app, ["distil", *map(str, folders), "--out", str(tmp_path)])
    assert refused.exit_code == 2 and "nothing is replaced" in refused.output.replace("\n", " ")
    assert all((folder / "manifest.yaml").exists() for folder in folders)


def test_a_mean_takes_two_and_moves_have_none(tmp_path: Path) -> None:
    one = teacher(tmp_path, 1)
    out = ["--out", str(tmp_path / "out")]
    alone = CliRunner().invoke(app, ["distil", str(one), *out])
    assert alone.exit_code == 2 and "at least two" in alone.output
    shape = TERMS._replace(outputs=6, scorer=1)
    moving = manifest().model_copy(
        update={"head": "moves", "moves": 6, "allocator": NetworkInfo.of(shape)}
    )
    path = tmp_path / "moves"
    checkpoints.save(path, moving, tensors(shape, 5), tensors(SCALER, 2), "a card")
    refused = CliRunner().invoke(app, ["distil", str(path), str(one), *out])
    assert refused.exit_code == 2 and "head is moves" in refused.output
    absent = CliRunner().invoke(app, ["distil", str(one), str(tmp_path / "no"), *out])
    assert absent.exit_code == 2 and "no/manifest.yaml" in absent.output.replace("\n", "")
