"""What is missing, and what the numbers say."""

import numpy as np
import pytest

from agents.experiment import ExperimentConfig, Results, prepare
from agents.experiment.analysis import anchors, comparisons, never_worse, normalised
from agents.experiment.front import compare_with_front
from agents.experiment.store import RunStore
from agents.experiment.table import DASH
from agents.experiment.tables import TABLES
from tests.experiment.invented import invent

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


def test_the_same_policies_differ_by_nothing_and_certainly_however_unlike_their_seeds_are(data):
    trained = {"policy": "lp:headroom=0.{seed}", "seeds": 3}
    entries = [
        {**entry, **trained} if entry["label"] == "subject" else entry for entry in data["entries"]
    ]
    entries.append({**trained, "label": "same"})
    config = ExperimentConfig.model_validate(data | {"entries": entries, "against": ["same"]})

    def value(entry, seed, cell, trace):
        # Of one of the two nobody has run the first seed yet.
        return None if entry == "same" and seed == 0 else 0.3 + 0.2 * seed + 0.01 * trace

    (only,) = comparisons(invent(config, value))
    assert only.difference.value == pytest.approx(0.0)
    assert (only.difference.low, only.difference.high) == pytest.approx((0.0, 0.0))
    assert (only.difference.runs, only.chance.value) == (12, 0.5)


def test_seeds_are_compared_with_the_same_seed_of_a_baseline_that_was_trained_too(data):
    trained = {"policy": "lp:headroom=0.{seed}", "seeds": 2}
    entries = [{**e, **trained} if e["label"] == "subject" else e for e in data["entries"]]
    entries.append({**trained, "seeds": 3, "label": "ablated"})
    config = ExperimentConfig.model_validate(data | {"entries": entries, "baseline": "subject"})
    results = invent(config, lambda entry, seed, cell, trace: 0.5 + 0.1 * seed)
    gaps = {name: values[2].text for name, values in TABLES["seeds"](results).rows}
    assert gaps["subject, seed 1"].startswith("+0.0") and gaps["ablated, seed 1"].startswith("+0.0")
    assert gaps["ablated, seed 2"] == DASH


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
