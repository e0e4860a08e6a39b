"""The command line, from YAML to a report."""

import re

import numpy as np
import pytest
import yaml

from agents.evaluate.cell import check_policy
from agents.evaluate.runner import run_cells
from agents.experiment import Experiment, ExperimentConfig, Results, prepare
from agents.experiment.store import RunStore
from agents.experiment.tables import TABLES
from hrl_planner.errors import PolicyError
from tests import fake_bounds
from tests.experiment.invented import cli, invent


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
    assert "Run so far, absent: none of 6 runs" in page
    assert "no-such-planner" not in page  # why a run cannot be made here says nothing of results
    assert "no-such-planner" in cli("status", "--config", file).output
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
    for name, begin in (("f.svg", b"<?xml"), ("f.png", b"\x89PNG"), ("f.pdf", b"%PDF")):
        done = cli("figure", "fronts", "--config", file, "--out", tmp_path / name)
        assert done.exit_code == 0 and (tmp_path / name).read_bytes().startswith(begin)


def test_a_table_can_be_about_another_entry(file):
    config = ["--config", file]
    assert cli("run", *config, "-j", "1", "--entry", "static", "--entry", "lp").exit_code == 0
    shown = cli("table", "cells", *config, "--subject", "static")
    assert shown.exit_code == 0 and "static against lp, cell by cell" in shown.output
    assert "no run" not in shown.output and "subject" not in shown.output
    refused = cli("table", "cells", *config, "--subject", "nobody")
    assert refused.exit_code == 2
    assert "subject 'nobody': no entry; one of static, subject, lp" in refused.output


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


def test_where_nothing_is_missing_runs_of_other_code_are_no_matter(file, config, monkeypatch):
    invent(config, lambda *_: 0.5)
    monkeypatch.setattr("agents.experiment.plan.code_digest", lambda more=(): "another-digest")
    done = cli("run", "--config", file, "-j", "1")
    assert done.exit_code == 0 and "36 of 36 runs" in done.output


def test_only_what_is_about_to_be_run_again_is_discarded(data, file, config, monkeypatch):
    other = ExperimentConfig.model_validate(data | {"name": "other", "grace_s": 30})
    longer = ExperimentConfig.model_validate(data | {"name": "longer", "traces": 3})
    for experiment in (other, longer):
        invent(experiment, lambda *_: 0.5, entries={"lp", "static", "lp-oracle"})
    prepare(config).keep_keys()
    entries = [entry | {"optional": True} for entry in data["entries"]]
    file.write_text(yaml.safe_dump(data | {"entries": entries}))
    monkeypatch.setattr("agents.experiment.plan.code_digest", lambda more=(): "another-digest")

    def no_foresight(text):
        if text == "lp-oracle":
            raise PolicyError("nobody knows the future here")
        check_policy(text)

    monkeypatch.setattr("agents.evaluate.cell.check_policy", no_foresight)
    discard = ("run", "--config", file, "-j", "1", "--minutes", "0", "--other-code", "discard")
    part = cli(*discard, "--entry", "lp")
    assert "6 runs made by other code are discarded" in part.output
    assert "12 that this call does not run anew are kept" in part.output
    whole = cli(*discard)
    assert "6 runs made by other code are discarded" in whole.output
    assert "6 that this call does not run anew are kept" in whole.output
    store = RunStore(config.results)
    left = {entry: len(list(store.lines(entry))) for entry in store.entries()}
    # Six runs of the other experiment, three of the longer one's last trace, and what was kept.
    assert left == {"lp": 9, "static": 9, "lp-oracle": 15}


def test_an_entry_is_run_without_others_of_the_same_policy(file):
    done = cli("run", "--config", file, "-j", "1", "--minutes", "0", "--entry", "lp-thrifty")
    assert "0 of 6 runs" in done.output


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
        (["figure", "fronts", "--config", "FILE", "--out", "f.poem"], "--out f.poem"),
        (["figure", "fronts", "--config", "FILE", "--out", "f"], "--out f"),
        (["run", "--config", "FILE", "--entry", "nobody"], "nobody"),
        (["run", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["run", "--config", "FILE", "--traces", "/no/folder"], "/no/folder"),
        (["status", "--config", "FILE", "--traces", "/no/folder"], "/no/folder"),
    ],
)
def test_bad_arguments_end_in_a_message(file, tmp_path, arguments, named):
    places = {"FILE": str(file), "OUT": str(tmp_path / "x.svg")}
    done = cli(*(places.get(a, a) for a in arguments))
    assert done.exit_code == 2 and named in done.output
