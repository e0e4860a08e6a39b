"""Forecasters know what they were shown, forget as they should, and never fail on a gap."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hrl_planner.errors import PolicyError
from hrl_planner.workload import Trace
from hrl_planner.workload.forecast import (
    FORECASTERS,
    Ewma,
    Forecaster,
    HoltWinters,
    LastValue,
    Oracle,
    SeasonalNaive,
    fit_holt_winters,
    make_forecaster,
)


def feed(forecaster: Forecaster, series: np.ndarray, step_s: float = 60.0) -> None:
    for i, values in enumerate(series):
        forecaster.update(i * step_s, values)


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_constant_is_forecast_as_itself_whatever_is_missing(name: str) -> None:
    forecaster = make_forecaster(name, 2)
    series = np.full((50, 2), [3.0, 7.0])
    series[10:20, 0] = np.nan
    feed(forecaster, series)
    assert forecaster.predict(300.0) == pytest.approx([3.0, 7.0])


@pytest.mark.parametrize("name", FORECASTERS)
def test_nothing_seen_is_nothing_known(name: str) -> None:
    forecaster = make_forecaster(name, 2)
    forecaster.update(0.0, np.array([np.nan, 1.0]))
    predicted = forecaster.predict(60.0)
    assert np.isnan(predicted[0]) and predicted[1] == pytest.approx(1.0)


@pytest.mark.parametrize("name", FORECASTERS)
def test_predictions_are_never_negative(name: str) -> None:
    forecaster = make_forecaster(name, 1)
    feed(forecaster, np.linspace(50, 0, 20)[:, None])
    assert (forecaster.predict(1800.0) >= 0).all()


@pytest.mark.parametrize("name", FORECASTERS)
def test_an_update_and_a_prediction_fit_in_a_control_loop(name: str) -> None:
    forecaster = make_forecaster(name, 8)
    values = np.ones(8)
    timings = []
    for i in range(300):
        start = time.perf_counter()
        forecaster.update(i * 60.0, values)
        forecaster.predict(120.0)
        timings.append(time.perf_counter() - start)
    # 100 us on a quiet machine; the median, with room for a busy one.
    assert np.median(timings) < 400e-6


def test_ewma_halves_the_past_after_its_half_life() -> None:
    forecaster = Ewma(1, half_life_s=60.0)
    forecaster.update(0.0, np.array([8.0]))
    forecaster.update(60.0, np.array([0.0]))
    assert forecaster.predict(0.0) == pytest.approx([4.0])
    forecaster.update(180.0, np.array([0.0]))
    assert forecaster.predict(0.0) == pytest.approx([1.0])


def test_holt_winters_extrapolates_a_ramp_where_others_lag() -> None:
    ramp = np.arange(40.0)[:, None]
    damped, last = HoltWinters(1, 60.0, damping=1.0, beta=0.5), LastValue(1)
    feed(damped, ramp)
    feed(last, ramp)
    assert damped.predict(300.0)[0] == pytest.approx(44.0, abs=0.5)
    assert last.predict(300.0)[0] == 39.0


def test_holt_winters_learns_a_season() -> None:
    t = np.arange(400)
    series = (20 + 10 * np.sin(2 * np.pi * t / 40))[:, None]
    model = HoltWinters(1, 60.0, season_s=2400.0, alpha=0.1, beta=0.02, gamma=0.3)
    errors = []
    for i, values in enumerate(series):
        if i > 200:
            errors.append(abs(model.predict(600.0)[0] - series[min(i - 1 + 10, 399)][0]))
        model.update(i * 60.0, values)
    assert np.mean(errors[:180]) < 3.0  # the last value alone would be off by 9 on average


def test_seasonal_naive_repeats_the_last_day() -> None:
    series = np.tile(np.arange(10.0), 3)[:25, None]
    model = SeasonalNaive(1, season_s=600.0, step_s=60.0)
    feed(model, series)
    assert model.predict(120.0)[0] == 6.0


def test_fitting_finds_constants_that_beat_the_defaults() -> None:
    pytest.importorskip("statsmodels")
    rng = np.random.default_rng(0)
    level = 50 + np.cumsum(rng.normal(0, 0.2, 300))
    series = np.stack([level + rng.normal(0, 4, 300), np.zeros(300)], axis=1)

    def error(model: HoltWinters) -> float:
        total = 0.0
        for i, values in enumerate(series):
            if i > 50:
                total += abs(model.predict(60.0)[0] - level[i])
            model.update(i * 60.0, values)
        return total

    assert error(fit_holt_winters(series, 60.0)) < error(HoltWinters(2, 60.0))
    with pytest.raises(PolicyError, match="too few"):
        fit_holt_winters(series[:5], 60.0)


def test_the_oracle_reads_true_rates_per_class() -> None:
    arrival = np.concatenate((np.arange(0, 100, 1.0), np.arange(100, 200, 0.25)))
    trace = Trace("t", arrival, np.ones(500), np.ones(500), 200.0)
    class_id = np.zeros(500, dtype=np.int16)
    oracle = Oracle(trace, class_id, k=2, window_s=20.0)
    oracle.update(30.0, np.zeros(2))
    assert oracle.predict(0.0) == pytest.approx([1.0, 0.0])
    assert oracle.predict(120.0) == pytest.approx([4.0, 0.0])
    assert oracle.predict(170.0) == pytest.approx([4.0, 0.0])
    assert oracle.predict(5000.0) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("crystal-ball", {}, "unknown forecaster"),
        ("ewma", {"half_life_s": 0.0}, "half_life_s"),
        ("ewma", {"speed": 1.0}, "speed"),
        ("holt-winters", {"alpha": 2.0}, "alpha"),
        ("holt-winters", {"damping": 0.0}, "damping"),
        ("seasonal-naive", {"step_s": float("nan")}, "step_s"),
    ],
)
def test_wrong_names_and_parameters_are_refused(
    name: str, parameters: dict[str, float], says: str
) -> None:
    with pytest.raises(PolicyError, match=says):
        make_forecaster(name, 1, **parameters)
