"""Experiments run in parts, mix nothing that differs, say what is missing, and report the rest."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from agents.evaluate.runner import run_cells
from agents.experiment import Experiment, ExperimentConfig, ExperimentError, Results, prepare
from agents.experiment.analysis import anchors, comparisons, never_worse, normalised
from agents.experiment.cells import find_cells
from agents.experiment.front import compare_with_front
from agents.experiment.perturb import make_true, swapped
from agents.experiment.plan import KEPT, policy_key
from agents.experiment.store import RunStore, append
from agents.experiment.tables import TABLES
from hrl_planner.cli import app
from hrl_planner.errors import PolicyError
from hrl_planner.spec import ClusterSpec
from tests import fake_bounds

SMOKE = Path(__file__).parents[1] / "experiments" / "experiment" / "smoke.yaml"
SHIPPED = sorted(SMOKE.parent.glob("*.yaml"))


@pytest.fixture(autouse=True)
def bounds():
    fake_bounds.install()


@pytest.fixture
def data(tmp_path):
    """The smoke experiment with its results in a folder of the test's own."""
    found = yaml.safe_load(SMOKE.read_text())
    return {**found, "results": str(tmp_path / "results")}


@pytest.fixture
def config(data):
    return ExperimentConfig.model_validate(data)


@pytest.fixture
def store(config):
    return RunStore(config.results)


def invent(config, value, entries=None):
    """Write runs that were never simulated: `value(entry, seed, cell, trace)` per run."""
    experiment = prepare(config)
    store = RunStore(config.results)
    for run in experiment.cells():
        if entries is not None and run.entry not in entries:
            continue
        found = value(run.entry, run.training_seed, run.cell.label, run.trace)
        if found is None:
            continue
        attained, hours = found if isinstance(found, tuple) else (found, 1.0)
        line = dict.fromkeys(KEPT, 0.0) | {
            "value_attainment": attained,
            "gpu_hours": hours,
            "cost": 2.0 * hours,
        }
        line |= {"cell": run.cell.label, "seed": run.training_seed, "trace": run.trace}
        store.write(run, line | {"key": run.key, "code": experiment.code, "wall_s": 1.0})
    return Results(experiment, store)


# The schema


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
    assert config.entry(config.subject).seeds >= 10
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


def test_two_cells_of_one_name_are_refused(data):
    twice = ExperimentConfig.model_validate(data | {"cells": [data["cells"][0]] * 2})
    with pytest.raises(ExperimentError, match="cold-start-ramp@1"):
        find_cells(twice, None)


def test_a_planner_that_is_not_there_is_an_error_unless_it_is_optional(data, config):
    assert any("no-such-planner" in note for note in prepare(config).notes)
    entries = [{k: v for k, v in e.items() if k != "optional"} for e in data["entries"]]
    with pytest.raises(PolicyError, match="no-such-planner"):
        prepare(ExperimentConfig.model_validate(data | {"entries": entries}))


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


# Runs


def run_all(config, **options):
    experiment = prepare(config, **options)
    store = RunStore(config.results)
    seen = []
    failures = run_cells(
        experiment, store, workers=1, on_progress=lambda p: seen.append((p.skipped, p.done))
    )
    return Results(experiment, store), failures, seen


def test_what_is_done_is_not_done_again_and_more_traces_add_to_it(data):
    config = ExperimentConfig.model_validate(data | {"traces": 1, "cells": data["cells"][1:]})
    results, failures, seen = run_all(config)
    assert not failures and seen[-1] == (0, 6)
    assert results.coverage("lp").complete
    _, _, seen = run_all(config)
    assert seen == [(6, 0)]
    more = config.model_copy(update={"traces": 2})
    results, _, seen = run_all(more)
    assert seen[0][0] == 6 and seen[-1] == (6, 6)
    assert results.coverage("subject").done == 4
    assert results.violations == 0


def test_runs_of_one_case_are_the_same_requests_for_all(data):
    config = ExperimentConfig.model_validate(data | {"traces": 1, "cells": data["cells"][1:]})
    results, *_ = run_all(config)
    offered = [results.scores(label, "offered") for label in results.started]
    assert len({float(np.nanmax(x)) for x in offered}) == 1


def test_a_torn_line_is_not_a_run_and_does_not_spoil_the_next(config, store):
    run = prepare(config).cells()[0]
    line = {"key": run.key, "seed": 0, "trace": 0, "code": "c"}
    path = config.results / "runs" / run.entry / "seed-0.jsonl"
    append(path, line)
    with open(path, "a") as file:
        file.write('{"key":"half')
    append(path, line | {"trace": 1})
    assert [one["trace"] for one in store.lines(run.entry)] == [0, 1]
    assert store.has(run)


def test_the_key_follows_what_a_run_depends_on_and_nothing_else(data):
    def keys(**changes):
        config = ExperimentConfig.model_validate(data | changes)
        return {(r.policy, r.cell.label): r.key for r in prepare(config).cells()}

    before = keys()
    assert keys(title="Another", about="x", traces=1).items() <= before.items()
    assert set(keys(grace_s=30).values()).isdisjoint(before.values())
    group = data["cells"][0]
    for change in ({"need": 0.5}, {"load": 0.2}, {"duration_s": 60}, {"truth": {"startup": 3.0}}):
        changed = keys(cells=[group | change])
        assert set(changed.values()).isdisjoint(before.values()), change
    assert len(set(before.values())) == len(before)


def test_another_checkpoint_under_the_same_path_is_another_policy(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"one")
    text = f"learned:path={tmp_path}"
    before = policy_key(text)
    assert policy_key(text) == before and before.startswith(text)
    (tmp_path / "weights.bin").write_bytes(b"two")
    assert policy_key(text) != before


def test_a_report_needs_neither_checkpoints_nor_recordings(data, tmp_path, monkeypatch):
    config = ExperimentConfig.model_validate(data)
    results = invent(config, lambda *_: 0.5)
    results.experiment.keep_keys()

    def gone(text):
        raise PolicyError(f"no checkpoint at {text}")

    monkeypatch.setattr("agents.evaluate.cell.check_policy", gone)
    optional = [{**entry, "optional": True} for entry in data["entries"]]
    elsewhere = ExperimentConfig.model_validate(data | {"entries": optional})
    experiment = prepare(elsewhere)
    assert experiment.cells() == []
    found = Results(experiment, RunStore(config.results))
    assert found.coverage("subject").complete


@pytest.mark.parametrize(("name", "label"), [("main", "learned"), ("ablations", "unshielded")])
def test_the_results_in_the_repository_need_no_checkpoints(name, label, tmp_path, monkeypatch):
    repository = SMOKE.parents[2]
    config = ExperimentConfig.load(SMOKE.parent / f"{name}.yaml")
    config = config.model_copy(update={"results": repository / config.results})
    monkeypatch.chdir(tmp_path)
    results = Results(prepare(config), RunStore(config.results))
    assert results.experiment.cells(), "policies without checkpoints can be made"
    assert not any(run.entry == label for run in results.experiment.cells())
    assert results.coverage(label).complete


def test_experiments_share_runs(data):
    config = ExperimentConfig.model_validate(data)
    invent(config, lambda *_: 0.5)
    part = ExperimentConfig.model_validate(
        data | {"name": "part", "cells": data["cells"][:1], "traces": 1}
    )
    found = Results(prepare(part), RunStore(part.results))
    assert found.coverage("lp").complete


def test_cells_alike_in_all_but_name_share_runs_too(data):
    group = data["cells"][0]
    twice = data | {"cells": [group, {**group, "group": "again"}]}
    config = ExperimentConfig.model_validate(twice)
    results = invent(config, lambda entry, seed, cell, trace: None if "again" in cell else 0.5)
    assert results.coverage("lp").complete


# What is missing


def test_missing_runs_are_counted_by_cell_and_training_seed(config):
    def value(entry, seed, cell, trace):
        left_out = (seed == 1 and trace == 1) or (cell == "steady-no-flap@1" and trace == 1)
        return None if left_out else 0.5

    results = invent(config, value, entries={"subject", "lp"})
    coverage = results.coverage("subject")
    assert (coverage.done, coverage.total) == (8, 12)
    assert (coverage.cells, coverage.of_cells, coverage.seeds, coverage.of_seeds) == (0, 3, 0, 2)
    assert str(coverage) == "8 of 12 runs; 0 of 3 cells x 0 of 2 training seeds complete"
    assert str(results.coverage("lp")) == "5 of 6 runs; 2 of 3 cells complete"
    assert str(results.coverage("absent")) == "none of 6 runs"
    for name, function in TABLES.items():
        text = function(results).markdown()
        if name not in ("seeds", "needs"):
            assert "8 of 12 runs" in text, name


def test_an_experiment_nobody_has_run_can_be_reported(config):
    results = Results(prepare(config), RunStore(config.results))
    for function in TABLES.values():
        table = function(results)
        assert all(len(values) == len(table.headings) - 1 for _, values in table.rows)
    assert "nothing to compare" in TABLES["cells"](results).markdown()


def test_differences_are_taken_over_the_runs_both_have(config):
    # The baseline has run only the easy trace; the subject both. Their difference is still 0.1.
    easy = {0: 0.9, 1: 0.1}

    def value(entry, seed, cell, trace):
        if entry == "lp" and trace == 1:
            return None
        return easy[trace] + (0.1 if entry == "subject" else 0.0)

    results = invent(config, value, entries={"subject", "lp"})
    (first, _) = comparisons(results)
    assert first.difference.value == pytest.approx(0.1)
    assert first.chance.value == 1.0


def test_of_two_trained_entries_the_kth_seed_is_compared_with_the_kth(data):
    trained = {"policy": "lp:headroom=0.{seed}", "seeds": 2}
    entries = [*data["entries"], {**trained, "label": "ablated"}]
    entries = [
        {**entry, **trained, "seeds": 4} if entry["label"] == "subject" else entry
        for entry in entries
    ]
    config = ExperimentConfig.model_validate(data | {"entries": entries, "against": ["ablated"]})

    # Later seeds of the subject are better; the ablated ones are as good as theirs of the subject.
    results = invent(config, lambda entry, seed, cell, trace: 0.5 + 0.1 * seed)
    (only,) = comparisons(results)
    assert only.difference.value == pytest.approx(0.0)
    assert only.chance.value == 0.5


# What the numbers say


def test_the_normalised_score_is_zero_for_the_best_split_and_one_for_foresight(config):
    means = {"static": 0.5, "lp": 0.7, "subject": 0.8, "lp-oracle": 0.9, "lp-thrifty": 0.6}

    def value(entry, seed, cell, trace):
        # The steady cell is easy for everyone: nothing to be won, nothing to divide by.
        return 0.99 if cell == "steady-no-flap@1" else means[entry] + 0.05 * trace

    results = invent(config, value)
    for label, expected in (("static", 0.0), ("lp", 0.5), ("subject", 0.75), ("lp-oracle", 1.0)):
        scores = normalised(results, label)
        assert np.isnan(scores[:, 1]).all()
        assert scores[:, [0, 2]] == pytest.approx(expected)
    assert anchors(results).usable.tolist() == [True, False, True]
    assert "1 of 3 cells" in TABLES["entries"](results).markdown()


def test_foresight_counts_under_the_setting_that_is_best_in_each_cell(config):
    config = config.model_copy(update={"one": ("lp-oracle", "lp-thrifty")})
    means = {"static": 0.5, "lp-oracle": 0.9, "lp-thrifty": 0.6}
    other = {"static": 0.5, "lp-oracle": 0.4, "lp-thrifty": 0.7}

    def value(entry, seed, cell, trace):
        return (other if cell == "steady-no-flap@1" else means).get(entry)

    found = anchors(invent(config, value))
    assert found.one == pytest.approx([0.9, 0.7, 0.9])
    assert found.usable.all()


@pytest.mark.parametrize(("loss", "answer"), [(0.004, "yes"), (0.006, "no, in cold-start-ramp@1")])
def test_never_worse_is_asked_of_every_cell(config, loss, answer):
    def value(entry, seed, cell, trace):
        gain = -loss if cell == "cold-start-ramp@1" else 0.2
        return 0.5 + (gain if entry == "subject" else 0.0)

    results = invent(config, value)
    found = never_worse(results)
    assert found.worst.cell == "cold-start-ramp@1"
    assert found.worst.difference.value == pytest.approx(-loss)
    assert f"any cell: {answer}" in TABLES["cells"](results).markdown()


def test_a_bad_training_seed_shows_though_the_mean_is_good(config):
    def value(entry, seed, cell, trace):
        return 0.5 + ((0.2 if seed else -0.1) if entry == "subject" else 0.0)

    found = never_worse(invent(config, value))
    assert found.worst.difference.value == pytest.approx(0.05)
    assert found.worst_seed == pytest.approx(-0.1)


def test_more_attainment_for_more_gpus_is_no_gain_over_the_front(config):
    points = {"lp": (0.6, 10.0), "lp-thrifty": (0.4, 5.0), "subject": (0.5, 7.5)}
    results = invent(config, lambda entry, *_: points.get(entry))
    found = compare_with_front(results, "subject")
    assert found.gain.value == pytest.approx(0.0)
    assert found.saved.value == pytest.approx(0.0)
    assert (found.gain_cells, found.saved_cells) == (3, 3)


def test_the_distance_to_the_front_is_measured_both_ways(config):
    points = {"lp": (0.6, 10.0), "lp-thrifty": (0.4, 5.0), "subject": (0.6, 7.5)}
    found = compare_with_front(invent(config, lambda e, *_: points.get(e)), "subject")
    assert found.gain.value == pytest.approx(0.1)
    assert found.saved.value == pytest.approx(0.25)
    assert found.gain.low == pytest.approx(0.1), "every trace says the same"
    beyond = {**points, "subject": (0.7, 4.0)}
    config = config.model_copy(update={"results": config.results / "b"})
    found = compare_with_front(invent(config, lambda e, *_: beyond.get(e)), "subject")
    assert (found.gain_cells, found.saved_cells) == (0, 0)


# The command line


def cli(*arguments):
    done = CliRunner().invoke(app, ["experiment", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def file(data, tmp_path):
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_smoke_experiment_from_yaml_to_report(file, config):
    begun = cli("run", "--config", file, "-j", "1", "--minutes", "0")
    assert begun.exit_code == 0 and "0 of 36 runs" in begun.output
    part = cli("run", "--config", file, "-j", "1", "--entry", "lp", "--entry", "static")
    assert "12 of 12 runs" in part.output
    done = cli("run", "--config", file, "-j", "1")
    assert done.exit_code == 0, done.output
    assert "36 of 36 runs" in done.output
    reported = cli("report", "--config", file)
    assert reported.exit_code == 0 and "36 of 42 runs" in reported.output
    page = (config.results / "report.html").read_text()
    assert len(page) < 2e6
    assert not re.search(r"<(script|link|img)\b", page), "nothing is fetched"
    text = (config.results / "README.md").read_text()
    for name in config.tables:
        assert f"hrl-planner experiment table {name} --config {file}" in text
    for name in config.figures:
        assert f"hrl-planner experiment figure {name}" in page
        assert (config.results / "figures" / f"smoke-{name}.svg").read_text().startswith("<svg")
    assert "Run so far, absent: none of 6 runs" in text
    status = cli("status", "--config", file)
    assert re.search(r"subject +all 12 runs", status.output)


@pytest.mark.slow
@pytest.mark.skipif(not fake_bounds.REAL, reason="workers cannot be given a stand-in for bounds")
def test_processes_give_the_same_numbers_as_one(data, tmp_path):
    found = []
    for workers in (1, 2):
        config = ExperimentConfig.model_validate(
            data | {"traces": 1, "results": str(tmp_path / str(workers))}
        )
        experiment, store = prepare(config), RunStore(config.results)
        assert not run_cells(experiment, store, workers=workers, on_progress=lambda _: None)
        results = Results(experiment, RunStore(config.results))
        found.append(np.concatenate([results.scores(label) for label in results.started]))
    assert np.array_equal(*found, equal_nan=True) and not np.isnan(found[0]).any()


def test_the_report_is_the_same_file_for_the_same_runs(file, config):
    invent(config, lambda entry, seed, cell, trace: 0.5 + 0.01 * trace + 0.02 * len(entry))
    texts = []
    for _ in range(2):
        cli("report", "--config", file)
        texts.append([p.read_bytes() for p in sorted(config.results.rglob("*.svg"))])
    assert texts[0] and texts[0] == texts[1]


def test_one_table_and_one_figure_each_have_a_command(file, config, tmp_path):
    invent(config, lambda entry, seed, cell, trace: 0.5 + 0.01 * trace + 0.02 * len(entry))
    for name in TABLES:
        done = cli("table", name, "--config", file)
        assert done.exit_code == 0 and "|---|" in done.output
    done = cli("figure", "fronts", "--config", file, "--out", tmp_path / "f.svg")
    assert done.exit_code == 0 and (tmp_path / "f.svg").exists()


def test_runs_of_other_code_are_refused_kept_or_discarded_as_told(file, config, monkeypatch):
    invent(config, lambda *_: 0.5, entries={"lp", "static"})
    monkeypatch.setattr("agents.experiment.plan.code_digest", lambda more=(): "another-digest")
    refused = cli("run", "--config", file, "-j", "1", "--minutes", "0")
    assert refused.exit_code == 2 and "--other-code keep" in refused.output
    kept = cli("run", "--config", file, "-j", "1", "--minutes", "0", "--other-code", "keep")
    assert kept.exit_code == 0 and "12 of 36 runs" in kept.output
    gone = cli("run", "--config", file, "-j", "1", "--minutes", "0", "--other-code", "discard")
    assert "12 runs made by other code are discarded" in gone.output
    assert "0 of 36 runs" in gone.output


def test_a_failing_run_is_reported_and_the_others_go_on(file, config, monkeypatch):
    run = Experiment.run

    def sometimes(self, cell, on_share):
        if cell.entry == "lp" and cell.trace == 1:
            raise ZeroDivisionError("oh")
        return run(self, cell, on_share)

    monkeypatch.setattr(Experiment, "run", sometimes)
    done = cli("run", "--config", file, "-j", "1", "--entry", "lp")
    assert done.exit_code == 1 and "ZeroDivisionError: oh" in done.output
    assert len(list((config.results / "failures").iterdir())) == 3
    monkeypatch.setattr(Experiment, "run", run)
    assert cli("run", "--config", file, "-j", "1", "--entry", "lp").exit_code == 0
    assert not list((config.results / "failures").iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["table", "poem", "--config", "FILE"], "poem"),
        (["figure", "poem", "--config", "FILE", "--out", "OUT"], "poem"),
        (["figure", "fronts", "--config", "FILE", "--out", "OUT"], "nothing to draw"),
        (["run", "--config", "FILE", "--entry", "nobody"], "nobody"),
        (["run", "--config", "/no/such.yaml"], "/no/such.yaml"),
    ],
)
def test_bad_arguments_end_in_a_message(file, tmp_path, arguments, named):
    places = {"FILE": str(file), "OUT": str(tmp_path / "x.svg")}
    done = cli(*(places.get(a, a) for a in arguments))
    assert done.exit_code == 2 and named in done.output
