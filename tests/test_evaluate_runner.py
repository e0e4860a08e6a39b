"""Evaluations resume, refuse foreign runs and survive failing and dying cells."""

import json
import os
import re
import signal
import time
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import hrl_planner
from agents.evaluate import EvaluationConfig, EvaluationError, Workload, evaluate
from agents.evaluate import runner as runner_module
from agents.evaluate.cases import choose_workloads, load_case
from agents.evaluate.config import code_digest, policy_key
from agents.evaluate.runner import run_cells
from agents.evaluate.store import Store
from agents.evaluate.summary import terminal_table
from hrl_planner.errors import CheckpointError, PolicyError, ScenarioError, TraceError
from hrl_planner.planner import thresholds
from hrl_planner.planner.checkpoint import SHIPPED
from hrl_planner.profile import PROFILE_DIR
from hrl_planner.spec import ClusterSpec

SCENARIO = Workload("scenario", "cold-start-ramp")


def make_config(**changes):
    fields = {
        "spec": ClusterSpec.load("small"),
        "workloads": (SCENARIO,),
        "policies": ("static", "hpa"),
        "seeds": 2,
        "until_s": 120.0,
        "load": 0.05,
    }
    return EvaluationConfig(**{**fields, **changes})


@pytest.fixture
def config():
    return make_config()


def run(config, folder, workers=1, **options):
    progress = []
    done = evaluate(
        config,
        folder,
        workers=workers,
        on_progress=lambda p: progress.append((p.skipped, p.done, len(p.failures), p.share)),
        command="hrl-planner evaluate ...",
        **options,
    )
    return done, progress


@pytest.fixture
def fake_cell(monkeypatch):
    """Replace the simulation by a function of (config, cell); the store and runner stay real."""

    def install(function):
        monkeypatch.setattr("agents.evaluate.cell.run_cell", lambda c, cell, _: function(cell))

    return install


def test_every_policy_meets_the_same_requests(config, tmp_path):
    done, progress = run(config, tmp_path)
    assert not done.failures
    offered = done.results.frame.query("`class` == 'all'").pivot(
        index="seed", columns="policy", values="offered"
    )
    assert (offered["static"] == offered["hpa"]).all()
    assert offered["static"].nunique() == 2, "seeds differ"
    assert progress[-1] == (0, 4, 0, 1.0)
    shares = [share for *_, share in progress]
    assert shares == sorted(shares)


def test_tables_and_report_are_written(config, tmp_path):
    done, _ = run(config, tmp_path)
    frame = pd.read_parquet(tmp_path / "results.parquet")
    classes = len(config.spec.slo_classes) + 1
    assert len(frame) == 2 * 2 * classes
    assert frame["budget_violations"].sum() == 0
    pd.testing.assert_frame_equal(
        frame, pd.read_csv(tmp_path / "results.csv"), check_dtype=False, rtol=1e-12
    )
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert len(summary) == 2 * classes
    assert (summary["attainment_low"] <= summary["attainment"]).all()
    assert done.report == tmp_path / "report.html"


def test_a_terminal_shows_every_policy_whole_however_many_there_are(tmp_path):
    policies = ("static", "hpa", "queue-length", "rule", "wva", "hpa:decode_running=40")
    done, _ = run(make_config(policies=policies, seeds=1), tmp_path)
    console = Console(width=80, record=True, file=StringIO())
    console.print(terminal_table(done.results, console.width))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert shown.count("Budget violations") > 1
    for policy in policies:
        assert policy in shown
    assert f"{100 * done.results.all_estimates('attainment')[0].value:.1f}" in shown


class _Outside(HTMLParser):
    """Collects whatever a page would fetch, and the places meant for figures."""

    def __init__(self):
        super().__init__()
        self.fetched, self.figures, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.fetched += [v for k, v in attrs if k in ("src", "srcset") or tag == "link"]
        if "data-figure" in attributes:
            self.figures.append(attributes["data-figure"])


def test_the_report_is_one_small_file_that_fetches_nothing(config, tmp_path):
    done, _ = run(config, tmp_path)
    page = done.report.read_text(encoding="utf-8")
    assert len(page.encode()) < 6e6
    outside = _Outside()
    outside.feed(page)
    assert outside.fetched == []
    figures = json.loads(re.search(r"const FIGURES = (\{.*\});\n", page).group(1))
    assert set(outside.figures) == set(figures)
    for name, figure in figures.items():
        assert figure["data"], name


def test_figures_are_what_plotly_accepts(config, tmp_path):
    from plotly.graph_objects import Figure

    done, _ = run(config, tmp_path)
    page = done.report.read_text(encoding="utf-8")
    for figure in json.loads(re.search(r"const FIGURES = (\{.*\});\n", page).group(1)).values():
        Figure(figure)  # raises on an unknown attribute or a bad value


def test_classes_without_requests_have_no_panels_and_policies_still_a_legend(tmp_path):
    one = Workload("scenario", "pd-ratio-shift")
    done, _ = run(make_config(workloads=(one,), seeds=1), tmp_path)
    page = done.report.read_text(encoding="utf-8")
    figures = json.loads(re.search(r"const FIGURES = (\{.*\});\n", page).group(1))
    for name, panels in (("w0-latency", 2), ("w0-attainment", 1)):
        titles = [note["text"] for note in figures[name]["layout"]["annotations"]]
        assert sum("batch" in title for title in titles) == panels
        assert not any("interactive" in title for title in titles)
        shown = [line["name"] for line in figures[name]["data"] if line["showlegend"]]
        assert shown == ["static", "hpa"]
        assert all(line["y"] for line in figures[name]["data"])


def test_names_from_the_spec_cannot_break_out_of_the_page(tmp_path):
    spec = ClusterSpec.load("small").replace(description="</script><b>x", name="a<b>&c")
    done, _ = run(make_config(spec=spec, seeds=1), tmp_path)
    page = done.report.read_text(encoding="utf-8")
    assert "a<b>&c" not in page
    assert "</script><b>x" not in page


def test_a_second_call_runs_only_what_is_missing(config, tmp_path):
    run(config, tmp_path)
    _, progress = run(config, tmp_path)
    assert progress == [(4, 0, 0, 1.0)]
    # More seeds and more policies keep what is there.
    _, progress = run(make_config(seeds=3, policies=("static", "hpa", "rule")), tmp_path)
    assert progress[0][0] == 4
    assert progress[-1][1] == 9 - 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"load": 0.06}, "--load"),
        ({"until_s": 60.0}, "--until"),
        ({"spec": ClusterSpec.load("small").replace(kv_block_tokens=32)}, "spec.kv_block_tokens"),
    ],
)
def test_runs_of_another_configuration_are_refused(config, tmp_path, change, named):
    run(config, tmp_path)
    with pytest.raises(EvaluationError, match=re.escape(named)):
        run(make_config(**change), tmp_path)
    _, progress = run(make_config(**change), tmp_path, force=True)
    assert progress[0][0] == 0, "--force starts anew"


def test_a_changed_trace_file_is_noticed(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,isl_tokens,osl_tokens\n0.5,100,10\n1.0,100,10\n")
    changes = {"workloads": (Workload("trace", str(trace)),), "load": 1.0, "until_s": None}
    config = make_config(**changes, policies=("static",), seeds=1)
    run(config, tmp_path / "out")
    trace.write_text("arrival_s,isl_tokens,osl_tokens\n0.5,100,10\n1.0,200,10\n")
    with pytest.raises(EvaluationError, match="workload t"):
        run(config, tmp_path / "out")


def test_a_policy_whose_files_changed_is_run_again_and_it_alone(tmp_path):
    file = tmp_path / "tuned.yaml"
    file.write_text("parameters: {up: 0.9}")
    config = make_config(policies=("static", f"thresholds:file={file}"))
    run(config, tmp_path / "out")
    file.write_text("parameters: {up: 0.001, up_cooldown_s: 0, wait: 0.001}")
    done, progress = run(config, tmp_path / "out")
    assert (progress[0][0], progress[-1][1]) == (2, 2), "the other policy's runs are kept"
    fresh, _ = run(config, tmp_path / "fresh")
    pd.testing.assert_frame_equal(
        done.results.frame.drop(columns="wall_s"), fresh.results.frame.drop(columns="wall_s")
    )
    file.write_text("parameters: {up: 0.9}")
    assert run(config, tmp_path / "out")[1][0][0] == 4, "what it was before has its runs still"


@pytest.mark.parametrize("spelled", ["{}", "{}@unlimited", "{}+rule", "lp+{}"])
def test_the_key_of_a_policy_follows_the_content_of_its_files(tmp_path, spelled):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"one")
    text = spelled.format(f"learned:path={folder}")
    before = policy_key(text)
    assert policy_key(text) == before and before.startswith(text)
    (folder / "weights.bin").write_bytes(b"two")
    assert policy_key(text) != before


@pytest.mark.parametrize(
    "file",
    [
        SHIPPED / "reference" / "manifest.yaml",
        SHIPPED / "reference" / "scaler.safetensors",
        PROFILE_DIR / "qwen3_32b__h100_sxm__tp2__vllm.npz",
        Path(thresholds.__file__).parent / "tuned" / "reference.yaml",
        Path(thresholds.__file__),
    ],
    ids=lambda file: file.name,
)
def test_what_ships_and_is_found_by_name_counts_as_code(tmp_path, monkeypatch, file):
    assert file.is_file()
    copy = tmp_path / file.relative_to(Path(hrl_planner.__file__).parents[1])
    copy.parent.mkdir(parents=True)
    monkeypatch.setattr("agents.evaluate.config._ROOT", tmp_path)
    digests = set()
    for content in (b"one", b"two"):
        copy.write_bytes(content)
        digests.add(code_digest())
    assert len(digests) == 2


def test_seeds_of_a_trace_file_share_its_requests(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,isl_tokens,osl_tokens\n0.5,100,10\n1.0,100,10\n")
    spec = ClusterSpec.load("small")
    first, second = (load_case(Workload("trace", str(trace)), spec, seed) for seed in (0, 1))
    assert np.array_equal(first.trace.arrival_s, second.trace.arrival_s)


def test_a_failing_cell_does_not_take_the_others_along(config, tmp_path, fake_cell):
    from agents.evaluate.cell import run_cell

    def sometimes(cell):
        if cell.policy == "hpa" and cell.seed == 1:
            raise ZeroDivisionError("oh")
        return run_cell(config, cell, lambda _: None)

    fake_cell(sometimes)
    done, progress = run(config, tmp_path)
    assert [str(f.cell) for f in done.failures] == ["hpa on cold-start-ramp, seed 1"]
    assert "ZeroDivisionError: oh" in done.failures[0].message
    assert "Traceback" in done.failures[0].log.read_text()
    assert progress[-1][1] == 3
    assert "1 runs failed" in done.report.read_text(encoding="utf-8")


def test_when_every_cell_fails_there_is_no_report(config, tmp_path, fake_cell):
    def never(cell):
        raise TraceError("bad")

    fake_cell(never)
    done, _ = run(config, tmp_path)
    assert done.report is None
    assert len(done.failures) == 4


def test_a_half_written_cell_is_not_a_cell(config, tmp_path):
    store = Store(tmp_path)
    store.open(config)
    cell = config.cells()[0]
    (tmp_path / "cells" / f".{cell.name}.json.77.tmp").write_text('{"work')
    assert not store.has(cell)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"policies": ("nope",)}, PolicyError, "nope"),
        ({"policies": ("hpa", "hpa")}, PolicyError, "twice"),
        ({"policies": ("hpa", "learned")}, CheckpointError, "no checkpoint ships for spec 'small'"),
        ({"policies": ("learned@unlimited",)}, CheckpointError, "no checkpoint ships"),
        ({"policies": ("hpa", "thresholds")}, PolicyError, "none are tuned for spec 'small'"),
        ({"workloads": (Workload("trace", "/no/such.csv"),)}, TraceError, "/no/such.csv"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, change, error, named):
    with pytest.raises(error, match=named):
        run(make_config(**change), tmp_path)
    assert not (tmp_path / "cells").exists()


def test_a_bound_does_not_search_before_its_run(config, monkeypatch):
    from agents.bounds import BestStaticPolicy
    from agents.evaluate.cell import check

    def searched(self, context):
        raise AssertionError("searched")

    monkeypatch.setattr(BestStaticPolicy, "reset", searched)
    check(make_config(policies=("best-static", "best-static+quota", "best-static@unlimited")))


def test_unknown_scenarios_are_refused_with_the_known_ones():
    with pytest.raises(ScenarioError, match="cold-start-ramp"):
        choose_workloads(["cold-start"], [])
    with pytest.raises(ScenarioError, match="nothing to run"):
        choose_workloads([], [])
    assert len(choose_workloads(["all"], [])) >= 14


@pytest.mark.slow
def test_processes_give_the_same_numbers_as_one(config, tmp_path):
    alone, _ = run(config, tmp_path / "one")
    apart, _ = run(config, tmp_path / "two", workers=2)
    pd.testing.assert_frame_equal(
        alone.results.frame.drop(columns="wall_s"), apart.results.frame.drop(columns="wall_s")
    )


def _die_on_hpa_seed_1(config, store, cell, slot):
    """Stands in for a worker's job; module level, so that a spawned process can find it."""
    if cell.policy == "hpa" and cell.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    store.write(cell, {"policy": cell.policy})


@pytest.mark.slow
def test_a_dying_worker_costs_only_its_own_cell(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "_work", _die_on_hpa_seed_1)
    store = Store(tmp_path)
    store.open(config)
    failures = run_cells(config, store, workers=2, on_progress=lambda _: None)
    assert [str(f.cell) for f in failures] == ["hpa on cold-start-ramp, seed 1"]
    assert "died" in failures[0].message
    assert sum(store.has(cell) for cell in config.cells()) == 3
