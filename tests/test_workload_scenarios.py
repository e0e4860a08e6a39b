"""Every scenario can be built on every shipped spec, and does what its name says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hrl_planner.cli.trace import app
from hrl_planner.errors import ScenarioError, TraceError
from hrl_planner.spec import ClusterSpec, shipped_specs
from hrl_planner.workload import assign_classes, read_trace
from hrl_planner.workload.scenarios import SCENARIOS, find_scenario
from hrl_planner.workload.scenarios.traffic import default_mix, sustainable_rps


@pytest.mark.parametrize("spec_name", shipped_specs())
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_fits_every_shipped_spec(name: str, spec_name: str) -> None:
    spec = ClusterSpec.load(spec_name)
    load = 0.05 if spec_name == "large" else 0.3
    case = SCENARIOS[name].build(spec, seed=0, duration_s=240.0, load=load)
    assert len(case.trace) > 10
    assert case.trace.name == name
    assert case.trace.duration_s == 240.0
    class_id = assign_classes(case.trace, case.spec, seed=0)
    assert class_id.min() >= 0
    pools, types = {p.name for p in case.spec.pools}, set(case.spec.gpu_types)
    for event in case.events:
        assert event.pool is None or event.pool in pools
        assert event.gpu_type is None or event.gpu_type in types
        assert event.t_s <= 240.0


def test_the_suite_is_complete() -> None:
    sources = {scenario.source.split()[0] for scenario in SCENARIOS.values()}
    assert sources == {"own", *(f"S{i}" for i in range(1, 15))}


def test_a_seed_changes_requests_and_load_scales_them() -> None:
    scenario = find_scenario("cold-start-ramp")
    spec = ClusterSpec.load("small")
    a, b, c = (scenario.build(spec, s, 200.0, load) for s, load in ((0, 1), (0, 1), (1, 1)))
    assert np.array_equal(a.trace.arrival_s, b.trace.arrival_s)
    assert not np.array_equal(a.trace.arrival_s, c.trace.arrival_s)
    half = scenario.build(spec, 0, 200.0, 0.5)
    assert len(half.trace) == pytest.approx(len(a.trace) / 2, rel=0.1)


# Made by commit 27b2ea9, before traces were made faster; whole numbers only, since the last bit of
# an exponential differs between processors.
FINGERPRINTS = {
    "diurnal-mix": "01dad0aeaa5e5cef",
    "priority-reclaim": "32893c6ac92a4dcb",
    "pd-ratio-shift": "17e9fba284ac9469",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_seed_gives_the_trace_it_always_gave(name: str) -> None:
    trace = find_scenario(name).build(ClusterSpec.load("reference"), 7, 300.0, 0.2).trace
    digest = hashlib.sha256()
    for column in (
        np.rint(1e3 * trace.arrival_s),
        trace.isl_tokens,
        trace.osl_tokens,
        trace.label,
        trace.session_id,
        trace.block_ids,
        trace.block_offsets,
    ):
        digest.update(column.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == FINGERPRINTS[name]


def test_more_gpus_sustain_more() -> None:
    spec = ClusterSpec.load("reference")
    mix = default_mix(spec)
    whole = sustainable_rps(spec, mix)
    third = {kind: n // 2 for kind, n in spec.budget.gpus.items()}
    assert 0 < sustainable_rps(spec, mix, third) < 0.7 * whole
    assert sustainable_rps(spec, mix, dict.fromkeys(spec.budget.gpus, 0)) == 0


def test_zero_traffic_ends_in_silence() -> None:
    case = SCENARIOS["zero-traffic"].build(ClusterSpec.load("small"), load=0.2)
    assert case.trace.arrival_s.max() < case.trace.duration_s / 3 + 1
    assert case.trace.duration_s == 1800.0


def test_over_budget_start_holds_more_than_exists() -> None:
    spec = ClusterSpec.load("small")
    case = SCENARIOS["over-budget-start"].build(spec, load=0.1)
    for event in case.events:
        pools = [p for p in case.spec.pools if p.gpu_type == event.gpu_type]
        held = sum(p.initial * p.gpus_per_replica for p in pools)
        assert event.value < held <= spec.budget.gpus[event.gpu_type or ""]


def test_pd_ratio_shift_keeps_the_rate_and_changes_the_lengths() -> None:
    trace = SCENARIOS["pd-ratio-shift"].build(ClusterSpec.load("reference"), load=0.5).trace
    first = trace.arrival_s < trace.duration_s / 2
    assert first.sum() == pytest.approx((~first).sum(), rel=0.1)
    assert trace.isl_tokens[first].mean() > 5 * trace.isl_tokens[~first].mean()
    assert trace.osl_tokens[~first].mean() > 5 * trace.osl_tokens[first].mean()


def test_unknown_scenarios_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"unknown scenario 'x'; one of: diurnal-mix"):
        find_scenario("x")
    with pytest.raises(ScenarioError, match="field load"):
        find_scenario("zero-traffic").build(load=float("nan"))


class TestTraceCommand:
    """`hrl-planner trace` as a user meets it."""

    runner = CliRunner()

    def test_generate_show_and_convert(self, tmp_path: Path) -> None:
        made, cut = tmp_path / "made.csv", tmp_path / "cut.csv.gz"
        args = ["generate", "bursts", str(made), "--duration", "300", "--rate", "4"]
        result = self.runner.invoke(app, args)
        assert result.exit_code == 0 and "written to" in result.output
        result = self.runner.invoke(app, ["show", str(made)])
        assert result.exit_code == 0 and "dispersion" in result.output
        result = self.runner.invoke(
            app, ["convert", str(made), str(cut), "--end", "100", "--label", "chat"]
        )
        assert result.exit_code == 0
        assert read_trace(cut).labels == ("chat",)

    @pytest.mark.parametrize(
        "kind",
        ["poisson", "diurnal", "ramp", "step", "sinusoid", "drift", "conversation", "agentic"],
    )
    def test_every_kind_can_be_generated(self, tmp_path: Path, kind: str) -> None:
        out = tmp_path / "t.csv"
        result = self.runner.invoke(app, ["generate", kind, str(out), "--duration", "120"])
        assert result.exit_code == 0, result.output
        assert len(read_trace(out)) > 0

    def test_scenarios_are_listed_and_explained(self) -> None:
        listed = self.runner.invoke(app, ["scenarios"])
        assert all(name in listed.output for name in SCENARIOS)
        assert "NaN" in self.runner.invoke(app, ["scenarios", "zero-traffic"]).output

    def test_errors_are_ours(self, tmp_path: Path) -> None:
        result = self.runner.invoke(app, ["generate", "chaos", str(tmp_path / "x.csv")])
        assert isinstance(result.exception, TraceError)
        result = self.runner.invoke(
            app, ["generate", "ramp", str(tmp_path / "x.csv"), "--low", "9", "--rate", "1"]
        )
        assert isinstance(result.exception, TraceError)
