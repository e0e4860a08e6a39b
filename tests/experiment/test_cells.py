"""What an experiment consists of: its schema, its cells, what is true in them, and the need."""

import json
import re

import numpy as np
import pytest
import yaml

from agents.experiment import ExperimentConfig, ExperimentError, Results, prepare
from agents.experiment.cells import find_cells
from agents.experiment.perturb import make_true, swapped
from agents.experiment.store import RunStore
from agents.experiment.tables import TABLES
from hrl_planner._spec_file import find_spec
from hrl_planner.spec import ClusterSpec
from tests.experiment.invented import SMOKE

SHIPPED = sorted(SMOKE.parent.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path):
    config = ExperimentConfig.load(path)
    cells = find_cells(config, None)
    assert cells
    assert all(set(config.tables) <= set(TABLES) for _ in cells)


def test_the_main_experiment_is_as_large_as_it_claims_to_be():
    config = ExperimentConfig.load(SMOKE.parent / "main.yaml")
    assert len(find_cells(config, None)) >= 12
    assert config.traces >= 20
    assert all(config.entry(label).seeds >= 10 for label in ("learned", "learned-rebuild"))
    ablations = ExperimentConfig.load(SMOKE.parent / "ablations.yaml")
    trained = [entry for entry in ablations.entries if "{seed}" in entry.policy]
    assert len(trained) > 1 and all(entry.seeds >= 5 for entry in trained)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"traces": 101}, "validation"),
        ({"subject": "nobody"}, "nobody"),
        ({"front": ["lp", "nobody"]}, "nobody"),
        ({"tables": ["poem"]}, "tables"),
        ({"entries": [{"label": "a", "policy": "lp", "seeds": 3}]}, "{seed}"),
        ({"cells": [{"scenarios": ["nope"], "tightness": [1.0]}]}, "nope"),
        ({"cells": [{"scenarios": ["steady-no-flap"], "tightness": [0.0]}]}, "tightness"),
        ({"cells": [{"tightness": [1.0]}]}, "no workload"),
        ({"typo": 1}, "typo"),
    ],
)
def test_mistakes_are_named(data, tmp_path, change, named):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(data | change))
    with pytest.raises(ExperimentError, match=re.escape(named)) as caught:
        ExperimentConfig.load(path)
    assert "bad.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b"name: [\n", "not valid YAML"),
        (b"name: a\nname: b\n", "line 2.*the key 'name' appears twice"),
        (b"- name\n", "is a mapping of fields"),
    ],
)
def test_a_file_that_describes_nothing_is_named_in_one_line(tmp_path, content, named):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=rf"bad\.yaml.*{named}") as caught:
        ExperimentConfig.load(path)
    assert "\n" not in str(caught.value)


def test_two_cells_of_one_name_are_refused(data):
    twice = ExperimentConfig.model_validate(data | {"cells": [data["cells"][0]] * 2})
    with pytest.raises(ExperimentError, match="cold-start-ramp@1"):
        find_cells(twice, None)


def test_a_planner_that_is_not_there_is_an_error_unless_it_is_optional(data, config):
    assert any("no-such-planner" in note for note in prepare(config).notes)
    entries = [{k: v for k, v in e.items() if k != "optional"} for e in data["entries"]]
    at = re.escape("experiment smoke: entries[") + r"\d\]\.policy 'no-such-planner'"
    with pytest.raises(ExperimentError, match=at):
        prepare(ExperimentConfig.model_validate(data | {"entries": entries}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec": "smalll"}, "cells[1].spec: unknown spec 'smalll'"),
        (
            {"swap": {"gpu_type": "B200", "to": "A100", "system": ["b", "a"]}},
            "cells[1].swap: swap of B200 for A100",
        ),
        ({"spec": "hopeless.yaml"}, "cells[1].scenarios: spec hopeless field slo_classes"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_the_field_before_any_run(
    data, change, named, tmp_path, monkeypatch
):
    spec = yaml.safe_load(find_spec("small").read_text()) | {"name": "hopeless"}
    for slo_class in spec["slo_classes"]:
        slo_class["itl_ms"] = 1e-3
    (tmp_path / "hopeless.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(tmp_path)
    groups = [dict(group) for group in data["cells"]]
    if "swap" in change:
        change["swap"]["price_per_gpu_hour"] = 1.0
    groups[1] |= change
    config = ExperimentConfig.model_validate(data | {"cells": groups})
    with pytest.raises(ExperimentError, match=re.escape(f"experiment smoke: {named}")):
        prepare(config)


# Clusters that are not what they are said to be


def test_a_truth_changes_what_is_simulated_and_nothing_planners_agree_on(config):
    cell = find_cells(config, None)[-1]
    case = cell.case(1.0, 0)
    assert cell.group == "slow-start" and case.truth is not None
    for believed, true in zip(case.spec.pools, case.truth.pools, strict=True):
        assert true.startup.mean_s == 2 * believed.startup.mean_s
        assert 0.7 <= true.latency_scale <= 1.3
    assert case.truth.intervals.scrape_lag_s == 30
    assert case.truth.budget == case.spec.budget
    scales = {pool.latency_scale for pool in case.truth.pools}
    assert len(scales) == len(case.truth.pools), "each pool is off in its own way"
    other = cell.case(1.0, 1)
    assert {pool.latency_scale for pool in other.truth.pools} != scales


def test_a_told_truth_is_no_truth():
    spec = ClusterSpec.load("small")
    config = ExperimentConfig.load(SMOKE)
    assert make_true(spec, config.cells[0].truth, 0) is None


def test_planners_are_told_the_belief_and_the_simulator_runs_the_truth(config, monkeypatch):
    from agents.evaluate.cell import run_case
    from hrl_planner.planner.static import StaticPolicy

    told = []
    reset = StaticPolicy.reset
    monkeypatch.setattr(
        StaticPolicy, "reset", lambda self, c: (told.append(c.spec), reset(self, c))[1]
    )
    case = find_cells(config, None)[-1].case(1.0, 0)
    done = run_case(case, "static", 0, grace_s=0.0)
    assert told == [case.spec]
    assert done.result.spec == case.truth


def test_a_truth_with_another_budget_is_refused(config):
    from dataclasses import replace

    from hrl_planner.errors import ScenarioError

    case = find_cells(config, None)[-1].case(1.0, 0)
    richer = case.spec.budget.model_copy(update={"gpus": {"H100": 99, "L40S": 99}})
    with pytest.raises(ScenarioError, match="budget"):
        replace(case, truth=case.spec.replace(budget=richer))
    with pytest.raises(ScenarioError, match="pools"):
        replace(case, truth=case.spec.replace(pools=case.spec.pools[::-1]))


def test_a_swapped_gpu_type_is_everywhere_in_the_spec():
    generalisation = ExperimentConfig.load(SMOKE.parent / "generalisation.yaml")
    swap = next(group.swap for group in generalisation.cells if group.swap is not None)
    before = ClusterSpec.load("reference")
    after = swapped(before, swap)
    assert "H200" not in {pool.gpu_type for pool in after.pools} | set(after.budget.gpus)
    assert not any("h200" in pool.profile for pool in after.pools)
    assert after.budget.gpus["H100"] == before.budget.gpus["H200"]
    with pytest.raises(ExperimentError, match="H200"):
        swapped(after, swap)


def test_a_swap_that_would_leave_the_profiles_alone_is_refused():
    generalisation = ExperimentConfig.load(SMOKE.parent / "generalisation.yaml")
    swap = next(group.swap for group in generalisation.cells if group.swap is not None)
    misspelt = swap.model_copy(update={"system": ("h200-sxm", "h100_sxm")})
    with pytest.raises(ExperimentError, match="system: 'h200-sxm' is not in profile"):
        swapped(ClusterSpec.load("reference"), misspelt)


def test_what_has_run_out_has_run_out_under_every_budget(data):
    group = data["cells"][0] | {"spec": "reference", "scenarios": ["spill-over"], "need": 1.0}
    group["tightness"] = [0.5, 1.0]
    config = ExperimentConfig.model_validate(data | {"cells": [group]})
    shares = []
    for cell in find_cells(config, None):
        case = cell.case(1.0, 0)
        (event,) = case.events
        assert 0 < event.value < case.spec.budget.gpus[event.gpu_type]
        shares.append(event.value / case.spec.budget.gpus[event.gpu_type])
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("smoke.json", "<<<<<<< HEAD", "Invalid JSON"),
        ("smoke.json", "[]", "smoke.json"),
        ("smoke.json", '{"cells": {"a": 1}}', "cells.a: Input should be a valid string, got 1"),
        ("needs.json", '{"a": {"label": "x", "seeds": [], "share": 1}}', "a.need: Field required"),
    ],
)
def test_a_damaged_file_beside_the_runs_is_named_in_one_line(data, file, content, named):
    config = ExperimentConfig.model_validate(data)
    config.results.mkdir(parents=True)
    (config.results / file).write_text(content)
    with pytest.raises(ExperimentError, match=named) as caught:
        prepare(config)
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_a_recording_is_cut_into_windows_by_seed_and_left_out_where_it_is_not(data, tmp_path):
    rows = "\n".join(f"{t},100,10" for t in range(0, 600, 5))
    (tmp_path / "day.csv").write_text(f"arrival_s,isl_tokens,osl_tokens\n{rows}\n")
    group = {"spec": "small", "recordings": ["day.csv"], "tightness": [1.0], "duration_s": 100}
    config = ExperimentConfig.model_validate(data | {"cells": [{**group, "need": 1.0}]})
    (cell,) = find_cells(config, tmp_path)
    first, second = (cell.case(1.0, seed).trace for seed in (0, 1))
    assert first.duration_s == second.duration_s == 100
    assert len(first) in (19, 20, 21)
    assert not np.array_equal(first.arrival_s, second.arrival_s)
    # Twenty windows over ten minutes: those that start within 50 s of one are the same stretch.
    days = [cell.source.day_of(seed) for seed in range(20)]
    assert days == sorted(days) and set(days) == set(range(6))
    absent = prepare(config)
    assert absent.cells() == [] and any("recording day " in note for note in absent.notes)


def test_days_of_rates_come_from_the_test_part(data, tmp_path):
    lines = [f"{86400 * day},{0.001 * (day + 1)},100,10" for day in range(10)]
    (tmp_path / "week.csv").write_text("time_s,rate_rps,mean_isl,mean_osl\n" + "\n".join(lines))
    group = {"spec": "small", "recordings": ["week.csv"], "tightness": [1.0], "need": 1.0}
    config = ExperimentConfig.model_validate(
        data | {"cells": [{**group, "duration_s": 86400, "load": 10}]}
    )
    (cell,) = find_cells(config, tmp_path)
    counts = [len(cell.case(1.0, seed).trace) for seed in range(4)]
    # Days 8 and 9 of ten are for tests: 0.09 and 0.10 requests per second.
    expected = [7776, 8640, 7776, 8640]
    assert counts == pytest.approx(expected, abs=5 * 93)
    assert [cell.source.day_of(seed) for seed in range(4)] == [0, 1, 0, 1]


def test_reports_know_which_traces_share_a_day_also_where_the_recording_is_not(data, tmp_path):
    lines = [f"{86400 * day},{0.001 * (day + 1)},100,10" for day in range(10)]
    (tmp_path / "week.csv").write_text("time_s,rate_rps,mean_isl,mean_osl\n" + "\n".join(lines))
    group = {"spec": "small", "recordings": ["week.csv"], "tightness": [0.8, 1.0], "need": 1.0}
    config = ExperimentConfig.model_validate(
        data | {"cells": [*data["cells"], {**group, "duration_s": 86400}], "traces": 4}
    )
    prepare(config, traces=tmp_path).keep_keys()
    days = Results(prepare(config), RunStore(config.results)).days
    # The ramp, steady load, the ramp on a slower cluster, and the recording under two budgets.
    assert days.group.tolist() == [0, 1, 0, 2, 2]
    assert days.day.tolist() == [[0, 1, 2, 3]] * 3 + [[0, 1, 0, 1]] * 2


def test_a_recording_elsewhere_counts_as_long_as_the_experiment_says_the_same_of_it(data, tmp_path):
    rows = "\n".join(f"{t},100,10" for t in range(0, 600, 5))
    (tmp_path / "day.csv").write_text(f"arrival_s,isl_tokens,osl_tokens\n{rows}\n")
    group = {"spec": "small", "recordings": ["day.csv"], "tightness": [1.0], "need": 1.0}
    config = ExperimentConfig.model_validate(data | {"cells": [{**group, "duration_s": 100}]})
    there = prepare(config, traces=tmp_path)
    there.keep_keys()
    again = prepare(config)
    assert again.cell_keys == there.cell_keys and again.days == there.days
    for change in (
        {"duration_s": 200},
        {"load": 2.0, "duration_s": 100},
        {"duration_s": 100, "truth": {"startup": 2.0}},
    ):
        changed = ExperimentConfig.model_validate(data | {"cells": [{**group, **change}]})
        assert prepare(changed).cell_keys == {}, change
        assert prepare(changed).days == {}, change
        prepare(changed).keep_keys()  # a report of it
    assert prepare(config).cell_keys == there.cell_keys and prepare(config).days == there.days


# The need


def test_needs_are_computed_once_and_scale_the_budget(data, monkeypatch):
    import agents.bounds

    asked = []

    def need(spec, trace, class_id, *, share):
        asked.append((len(trace), share))
        return 0.25 + 0.25 * len(asked)

    monkeypatch.setattr(agents.bounds, "clairvoyant_need", need)
    group = {k: v for k, v in data["cells"][0].items() if k != "need"}
    group["tightness"] = [0.5, 1.0]
    config = ExperimentConfig.model_validate(data | {"cells": [group]})
    assert prepare(config).cells() == [], "nothing can be run before the need is known"
    found = prepare(config, compute_needs=True)
    # Three validation days of each of two workloads; the median of 0.5, 0.75 and 1.0.
    assert len(asked) == 6 and {share for _, share in asked} == {0.99}
    assert found.needs["cold-start-ramp@0.5"] == 0.75
    prepare(config, compute_needs=True)
    assert len(asked) == 6
    kept = json.loads((config.results / "needs.json").read_text())
    assert all(seed >= 100 for one in kept.values() for seed in one["seeds"])
    tight, loose = (cell.case(0.75, 0) for cell in found.all_cells[:2])
    assert tight.spec.budget.gpus["H100"] < loose.spec.budget.gpus["H100"]
    assert np.array_equal(tight.trace.arrival_s, loose.trace.arrival_s), "the load stays"
