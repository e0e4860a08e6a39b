"""The figures over all runs: who is better, by how much, at what price.

A figure is a plain plotly.js description (`{"data": [...], "layout": {...}}`); nothing here
draws. Figures over time, of one workload, are in `figures_time.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.evaluate.metrics import ALL_CLASSES, METRICS
from agents.evaluate.statistics import (
    Estimate,
    paired_difference,
    probability_of_improvement,
)
from agents.evaluate.summary import Results
from agents.evaluate.theme import INK, axis, layout, panel_title, policy_colours, rgba

Figure = dict[str, Any]

_GAP = 0.06
# More policies than this make the cells of two matrices in one row too narrow for their text.
_MOST_SIDE_BY_SIDE = 4


def columns(count: int, gap: float = _GAP) -> list[tuple[float, float]]:
    """Horizontal domains of `count` panels side by side."""
    width = (1.0 - gap * (count - 1)) / count
    return [(i * (width + gap), i * (width + gap) + width) for i in range(count)]


def rows(count: int, gap: float = _GAP) -> list[tuple[float, float]]:
    """Vertical domains of `count` panels, the first on top."""
    return [(1.0 - high, 1.0 - low) for low, high in columns(count, gap)]


def axis_name(letter: str, number: int, *, long: bool = False) -> str:
    """Name of the n-th axis, 0-based: "x", "x2", or "xaxis", "xaxis2" as layout key."""
    return f"{letter}{'axis' if long else ''}{'' if number == 0 else number + 1}"


def error_bar(found: Estimate, scale: float = 1.0) -> Figure:
    """Asymmetric error bar; none where there is no interval."""
    if np.isnan(found.low):
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (found.high - found.value)],
        "arrayminus": [scale * (found.value - found.low)],
        "thickness": 2,
        "width": 5,
    }


def attainment_intervals(results: Results) -> Figure:
    """IQM and interval of attainment, per policy, in total and per class."""
    colours = policy_colours(results.policies)
    panels = [("value_attainment", ALL_CLASSES, "value-weighted")]
    panels += [("attainment", name, name) for name in results.classes]
    domains = columns(len(panels), 0.03)
    names = list(reversed(results.policies))
    data: list[Figure] = []
    annotations: list[Figure] = []
    lows = []
    figure_layout = layout(
        96 + 34 * len(names), showlegend=False, hovermode="closest", margin={"t": 34, "b": 46}
    )
    for number, (metric, of_class, title) in enumerate(panels):
        for policy in names:
            found = results.estimate(policy, metric, of_class=of_class)
            error = error_bar(found, 100.0)
            lows.append(100.0 * (found.value if np.isnan(found.low) else found.low))
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [_percent(found.value)],
                    "y": [policy],
                    "error_x": error | {"color": colours[policy]},
                    "marker": {"size": 10, "color": colours[policy]},
                    "xaxis": axis_name("x", number),
                    "yaxis": "y",
                    "hovertemplate": _hover(policy, metric, found),
                }
            )
        figure_layout[axis_name("x", number, long=True)] = axis(
            domain=domains[number], ticksuffix=" %", nticks=5
        )
        annotations.append(panel_title(title, domains[number][0], 1.02))
    start = max(0.0, float(np.nanmin(lows)) - 5.0) if lows else 0.0
    for number in range(len(panels)):
        # One range for all panels: a dot further right must mean more.
        figure_layout[axis_name("x", number, long=True)]["range"] = [start - 3.0, 103.0]
    figure_layout["yaxis"] = axis(
        categoryorder="array", categoryarray=names, automargin=True, ticks=""
    )
    figure_layout["annotations"] = annotations
    return {"data": data, "layout": figure_layout}


def cost_against_attainment(results: Results, workload: str) -> Figure:
    """Every run of a workload as a faint dot, each policy's estimate with intervals both ways."""
    colours = policy_colours(results.policies)
    data: list[Figure] = []
    for policy in results.policies:
        cost = results.scores(policy, "cost", workload=workload).ravel()
        met = results.scores(policy, "value_attainment", workload=workload).ravel()
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [_finite(x) for x in cost],
                "y": [_percent(y) for y in met],
                "marker": {"size": 7, "color": rgba(colours[policy], 0.28)},
                "showlegend": False,
                "hovertemplate": f"{policy}, one run<br>$%{{x:.2f}}, %{{y:.1f}} %<extra></extra>",
            }
        )
    for policy in results.policies:
        price = results.estimate(policy, "cost", workload=workload)
        share = results.estimate(policy, "value_attainment", workload=workload)
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": policy,
                "x": [_finite(price.value)],
                "y": [_percent(share.value)],
                "text": [f"<b>{policy}</b>"],
                "textposition": "top right",
                "textfont": {"color": colours[policy], "size": 12.5},
                "error_x": error_bar(price) | {"color": colours[policy]},
                "error_y": error_bar(share, 100.0) | {"color": colours[policy]},
                "marker": {
                    "size": 13,
                    "color": colours[policy],
                    "line": {"color": "#ffffff", "width": 1.5},
                },
                "hovertemplate": f"{policy}<br>$%{{x:.2f}}, %{{y:.1f}} %<extra></extra>",
            }
        )
    figure_layout = layout(430, hovermode="closest", showlegend=False)
    figure_layout["xaxis"] = axis("cost per run", tickprefix="$")
    figure_layout["yaxis"] = axis("value-weighted attainment", ticksuffix=" %")
    return {"data": data, "layout": figure_layout}


def pairwise(results: Results) -> Figure:
    """Probability of improvement and paired difference of every policy against every other."""
    panels = [("value_attainment", "on value-weighted attainment"), ("cost", "on cost")]
    stacked = len(results.policies) > _MOST_SIDE_BY_SIDE
    height = 130 + 62 * len(results.policies)
    across = [(0.0, 1.0)] * 2 if stacked else columns(2, 0.16)
    down = rows(2, 0.14) if stacked else [(0.0, 1.0)] * 2
    data: list[Figure] = []
    annotations: list[Figure] = []
    figure_layout = layout((1 + stacked) * height, hovermode="closest", showlegend=False)
    for number, (metric, title) in enumerate(panels):
        x_name, y_name = axis_name("x", number), axis_name("y", number)
        chances: list[list[float | None]] = []
        for row in results.policies:
            line: list[float | None] = []
            for column in results.policies:
                chance, text = _duel(results, row, column, metric)
                line.append(chance)
                strong = chance is not None and abs(chance - 0.5) > 0.34
                annotations.append(
                    {
                        "x": column,
                        "y": row,
                        "xref": x_name,
                        "yref": y_name,
                        "text": text,
                        "showarrow": False,
                        "font": {"size": 11, "color": "#ffffff" if strong else INK},
                    }
                )
            chances.append(line)
        data.append(_heatmap(results, chances, x_name, y_name))
        figure_layout[axis_name("x", number, long=True)] = axis(
            "compared with", domain=across[number], anchor=y_name, ticks="", showgrid=False
        )
        figure_layout[axis_name("y", number, long=True)] = axis(
            domain=down[number],
            anchor=x_name,
            autorange="reversed",
            ticks="",
            showgrid=False,
            automargin=True,
        )
        annotations.append(
            panel_title(f"Row is better {title}", across[number][0], down[number][1])
        )
    figure_layout["annotations"] = annotations
    return {"data": data, "layout": figure_layout}


def _heatmap(
    results: Results, chances: list[list[float | None]], x_name: str, y_name: str
) -> Figure:
    return {
        "type": "heatmap",
        "z": chances,
        "x": list(results.policies),
        "y": list(results.policies),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#b5523b"], [0.5, "#f4f2ee"], [1, "#2c6e8f"]],
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
        "xaxis": x_name,
        "yaxis": y_name,
        "hovertemplate": "%{y} against %{x}: %{z:.2f}<extra></extra>",
    }


def _duel(results: Results, row: str, column: str, metric: str) -> tuple[float | None, str]:
    """Chance that `row` beats `column`, and the text of the matrix cell."""
    if row == column:
        return None, ""
    mine, other = results.scores(row, metric), results.scores(column, metric)
    chance = probability_of_improvement(mine, other, higher_is_better=METRICS[metric].better > 0)
    gap = paired_difference(mine, other)
    if chance.runs == 0:
        return None, ""
    shares = METRICS[metric].unit == "%"
    scale, unit = (100.0, "pp") if shares else (1.0, "$")
    text = f"<b>{chance.value:.2f}</b><br>{scale * gap.value:+.1f} {unit}"
    if not np.isnan(gap.low):
        text += f"<br>[{scale * gap.low:+.1f}, {scale * gap.high:+.1f}]"
    return chance.value, text


def actions(results: Results) -> Figure:
    """Scaling actions and the reversals among them, per policy."""
    bars: list[Figure] = []
    names = list(reversed(results.policies))
    colours = policy_colours(results.policies)
    for metric, opacity, label in (
        ("scaling_actions", 0.35, "scaling actions"),
        ("reversals", 1.0, "of which reversals within 10 minutes"),
    ):
        found = [results.estimate(policy, metric) for policy in names]
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label,
                "y": names,
                "x": [_finite(one.value) for one in found],
                "marker": {"color": [rgba(colours[p], opacity) for p in names]},
                "text": [f"{one.value:.0f}" for one in found],
                "textposition": "outside" if metric == "scaling_actions" else "inside",
                "insidetextanchor": "start",
                "hovertemplate": f"%{{y}}: %{{x:.1f}} {label}<extra></extra>",
                "showlegend": False,
            }
        )
    figure_layout = layout(
        70 + 34 * len(names), barmode="overlay", hovermode="closest", bargap=0.35
    )
    figure_layout["margin"] = {"l": 62, "r": 40, "t": 10, "b": 46}
    figure_layout["xaxis"] = axis("per run; the solid part are reversals", rangemode="tozero")
    figure_layout["yaxis"] = axis(ticks="", automargin=True)
    return {"data": bars, "layout": figure_layout}


def _hover(policy: str, metric: str, found: Estimate) -> str:
    shown = METRICS[metric]
    text = f"<b>{policy}</b>: {shown.format(found.value)}"
    if not np.isnan(found.low):
        text += f"<br>{shown.format(found.low)} to {shown.format(found.high)}"
    return f"{text}<extra></extra>"


def _percent(value: float) -> float | None:
    return _finite(100.0 * value)


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
