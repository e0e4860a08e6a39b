"""The figure that evaluation's reports lack: quotas and replicas of both runs, pool by pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.agreement.runs import Run, Steps
from agents.evaluate.figures import Figure, axis_name, columns, rows
from agents.evaluate.theme import axis, layout, panel_title, pool_order
from hrl_planner.localcluster.demo_watch import NO_QUOTA
from hrl_planner.spec import ClusterSpec

_WIDE = 2


def trajectories(runs: tuple[Run, ...], spec: ClusterSpec, colours: dict[str, str]) -> Figure:
    """Quotas and ready replicas over time, a panel per pool, a colour per run."""
    order = pool_order(spec)
    deep = -(-len(order) // _WIDE)
    figure_layout = layout(110 + 200 * deep, hovermode="closest")
    across, down = columns(_WIDE, 0.06), rows(deep, 60 / figure_layout["height"])
    data: list[Figure] = []
    annotations: list[Figure] = []
    for number, pool in enumerate(order):
        x_name, y_name = axis_name("x", number), axis_name("y", number)
        column, row = number % _WIDE, number // _WIDE
        for run in runs:
            look = {"legendgroup": run.name, "xaxis": x_name, "yaxis": y_name}
            end_s = run.result.duration_s
            data.append(
                _line(run.replicas("ready"), pool, end_s)
                | look
                | {
                    "name": run.name,
                    "showlegend": number == 0,
                    "line": {"color": colours[run.name], "width": 2.2, "shape": "hv"},
                    "hovertemplate": "%{y} ready",
                }
            )
            quota = {"color": colours[run.name], "width": 1.4, "shape": "hv", "dash": "dot"}
            data.append(
                _line(run.quota, pool, end_s)
                | look
                | {
                    "name": f"{run.name}, quota",
                    "showlegend": number == 0,
                    "line": quota,
                    "hovertemplate": "quota %{y}",
                }
            )
        bottom = number + _WIDE >= len(order)
        figure_layout[axis_name("x", number, long=True)] = axis(
            "seconds" if bottom else "",
            domain=across[column],
            anchor=y_name,
            showgrid=False,
            range=[0, runs[0].result.duration_s],
        )
        figure_layout[axis_name("y", number, long=True)] = axis(
            domain=down[row], anchor=x_name, rangemode="tozero", nticks=6
        )
        annotations.append(panel_title(spec.pools[pool].name, across[column][0], down[row][1]))
    figure_layout["annotations"] = annotations
    figure_layout["legend"] |= {"y": 1.0 + 26 / figure_layout["height"]}
    figure_layout["margin"]["t"] = 66
    return {"data": data, "layout": figure_layout}


def _line(steps: Steps, pool: int, end_s: float) -> dict[str, Any]:
    """Return a step function up to the trace's end, with its changes and no more."""
    values = steps.values[:, pool]
    kept = np.ones(values.size, np.bool_)
    kept[1:] = values[1:] != values[:-1]
    kept &= steps.t_s <= end_s
    t_s = [round(float(t), 2) for t in steps.t_s[kept]]
    shown = [None if value == NO_QUOTA else value for value in values[kept].tolist()]
    return {"type": "scatter", "mode": "lines", "x": [*t_s, end_s], "y": [*shown, shown[-1]]}
