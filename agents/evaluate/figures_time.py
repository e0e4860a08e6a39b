"""The figures of one workload: what happened when, and the latency distributions.

Counts are summed over seeds, so attainment over time is that of all runs together. Replicas and
GPUs are shown for one seed: the mean of several step functions is a slope nobody took.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluate.figures import Figure, axis_name, columns, rows
from agents.evaluate.store import CellData
from agents.evaluate.theme import (
    TARGET,
    axis,
    latency_axis,
    layout,
    panel_title,
    pool_colours,
    pool_order,
    rgba,
)
from hrl_planner.spec import ClusterSpec, SloClassSpec

Cells = dict[str, list[CellData]]

# Bins with few requests would jump between 0 and 100 %; they are pooled with their neighbours.
_SMOOTHING_BINS = 3
_CDF_POINTS = 90


def by_policy(cells: Sequence[CellData], policies: Sequence[str], workload: str) -> Cells:
    """Cells of one workload per policy, in the order of policies; seeds ascending."""
    found: Cells = {}
    for policy in policies:
        mine = [c for c in cells if c["policy"] == policy and c["workload"] == workload]
        if mine:
            found[policy] = sorted(mine, key=lambda c: int(c["seed"]))
    return found


def _asked_for(cells: Cells, spec: ClusterSpec) -> list[tuple[int, SloClassSpec]]:
    """Return the classes a workload has requests of, each with its place; all if it has none."""
    offered = [c["curves"]["offered"] for mine in cells.values() for c in mine]
    classes = list(enumerate(spec.slo_classes))
    asked_for = [c for c in classes if any(np.any(one[c[0]]) for one in offered)]
    return asked_for or classes


def attainment_over_time(cells: Cells, spec: ClusterSpec, colours: dict[str, str]) -> Figure:
    """Offered load on top, then attainment of every class asked for, one line per policy."""
    scale, unit = _time_unit(cells)
    classes = _asked_for(cells, spec)
    domains = _uneven_rows([0.6] + [1.0] * len(classes))
    data: list[Figure] = []
    figure_layout = layout(170 + 170 * len(classes))
    first = next(iter(cells.values()))
    bin_centres = first[0]["curves"]["t_s"]
    # Evenly spaced: two numbers instead of a column per line.
    t = {"x0": bin_centres[0] / scale, "dx": (bin_centres[1] - bin_centres[0]) / scale}
    annotations = [panel_title("offered load, requests per second", 0, domains[0][1] + 0.004)]
    for index, (place, slo_class) in enumerate(classes):
        shade = 0.65 - 0.45 * index / max(1, len(classes) - 1)
        data.append(_load_area(first, place, slo_class.name, shade) | t)
        annotations.append(panel_title(
            f"{slo_class.name}: requests within TTFT {slo_class.ttft_ms:g} ms and "
            f"ITL {slo_class.itl_ms:g} ms", 0, domains[index + 1][1] + 0.004,
        ))  # fmt: skip
        for policy, mine in cells.items():
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": policy,
                    "legendgroup": policy,
                    "showlegend": index == 0,
                    "y": _share(mine, place),
                    "line": {"color": colours[policy], "width": 1.9},
                    "connectgaps": True,
                    "xaxis": "x",
                    "yaxis": axis_name("y", index + 1),
                    "hovertemplate": "%{y:.1f} %",
                }
                | t
            )
        figure_layout[axis_name("y", index + 1, long=True)] = axis(
            domain=domains[index + 1], range=[-3, 103], ticksuffix=" %", nticks=5
        )
    figure_layout["yaxis"] = axis(domain=domains[0], nticks=4, rangemode="tozero")
    figure_layout["xaxis"] = axis(f"time of arrival, {unit}", anchor=axis_name("y", len(classes)))
    figure_layout["annotations"] = annotations
    figure_layout["legend"] |= {"y": 1.045}
    figure_layout["margin"]["t"] = 56
    return {"data": data, "layout": figure_layout}


def _load_area(cells: list[CellData], place: int, name: str, shade: float) -> Figure:
    """Mean offered rate of one class over seeds, stacked in greys."""
    rates = [np.array(c["curves"]["offered"][place]) / c["curves"]["bin_s"] for c in cells]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "stackgroup": "load",
        "y": _rounded(np.mean(rates, axis=0), 3),
        "line": {"width": 0},
        "fillcolor": rgba("#4a5764", shade),
        "showlegend": False,
        "xaxis": "x",
        "yaxis": "y",
        "hovertemplate": "%{y:.2f} req/s",
    }


def _share(cells: list[CellData], index: int) -> list[float | None]:
    """Attainment per bin over all seeds, lightly smoothed; None where nothing arrived."""
    offered = np.sum([c["curves"]["offered"][index] for c in cells], axis=0).astype(np.float64)
    attained = np.sum([c["curves"]["attained"][index] for c in cells], axis=0).astype(np.float64)
    window = np.ones(_SMOOTHING_BINS)
    near_offered = np.convolve(offered, window, mode="same")
    near_attained = np.convolve(attained, window, mode="same")
    return [
        round(100.0 * a / o, 1) if o > 0 else None
        for a, o in zip(near_attained.tolist(), near_offered.tolist(), strict=True)
    ]


def gpus_against_budget(cells: Cells, spec: ClusterSpec) -> Figure:
    """GPUs held by pool, stacked, a column per GPU type with its budget, a row per policy."""
    scale, unit = _time_unit(cells)
    types, order, colours = spec.gpu_types, pool_order(spec), pool_colours(spec)
    across, down = columns(len(types), 0.05), rows(len(cells), min(0.05, 0.3 / len(cells)))
    data: list[Figure] = []
    shapes: list[Figure] = []
    annotations: list[Figure] = []
    figure_layout = layout(130 + 135 * len(cells))
    for row, (policy, mine) in enumerate(cells.items()):
        shown = mine[0]["curves"]
        t = np.array(shown["timeline_t_s"]) / scale
        held = np.array(shown["gpus"])
        for column, gpu_type in enumerate(types):
            number = row * len(types) + column
            x_name, y_name = axis_name("x", number), axis_name("y", number)
            allowed = shown["budget"].get(gpu_type, spec.budget.gpus[gpu_type])
            members = [i for i in order if spec.pools[i].gpu_type == gpu_type]
            kept = _changes(held[members])
            for pool in members:
                area = _pool_area(spec.pools[pool].name, colours[pool], x_name, y_name)
                area |= {"x": _rounded(t[kept], 3), "y": held[pool, kept].tolist()}
                data.append(area | {"showlegend": row == 0})
            shapes.append(_budget_line(allowed, x_name, y_name))
            last = row == len(cells) - 1
            figure_layout[axis_name("x", number, long=True)] = axis(
                unit if last else "", domain=across[column], anchor=y_name, showticklabels=last,
                showgrid=False,
            )  # fmt: skip
            figure_layout[axis_name("y", number, long=True)] = axis(
                policy if column == 0 else "", domain=down[row], anchor=x_name,
                range=[0, allowed * 1.12], nticks=5,
            )  # fmt: skip
            if row == 0:
                text = f"{gpu_type}: budget {allowed} GPUs"
                annotations.append(panel_title(text, across[column][0], 1.004))
    figure_layout |= {"shapes": shapes, "annotations": annotations}
    figure_layout["legend"] |= {"y": 1.0 + 34 / figure_layout["height"], "traceorder": "normal"}
    figure_layout["margin"]["t"] = 84
    return {"data": data, "layout": figure_layout}


def _pool_area(name: str, colour: str, x_name: str, y_name: str) -> Figure:
    """A stacked step area without its points."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "stackgroup": f"{x_name}{y_name}",
        "line": {"width": 0.6, "color": colour, "shape": "hv"},
        "fillcolor": colour,
        "xaxis": x_name,
        "yaxis": y_name,
        "hovertemplate": "%{y} GPUs",
    }


def _budget_line(allowed: float, x_name: str, y_name: str) -> Figure:
    return {
        "type": "line",
        "xref": f"{x_name} domain",
        "yref": y_name,
        "x0": 0,
        "x1": 1,
        "y0": allowed,
        "y1": allowed,
        "line": {"color": TARGET, "width": 1.6, "dash": "dash"},
    }


def replicas_by_pool(cells: Cells, spec: ClusterSpec, colours: dict[str, str]) -> Figure:
    """Ready replicas, one panel per pool, one line per policy."""
    scale, unit = _time_unit(cells)
    order = pool_order(spec)
    wide = min(4, len(order))
    deep = -(-len(order) // wide)
    across = columns(wide, 0.045)
    data: list[Figure] = []
    annotations: list[Figure] = []
    figure_layout = layout(100 + 165 * deep)
    down = rows(deep, 56 / figure_layout["height"])
    most = [max(max(c[0]["curves"]["ready"][pool]) for c in cells.values()) for pool in order]
    for number, pool in enumerate(order):
        x_name, y_name = axis_name("x", number), axis_name("y", number)
        column, row = number % wide, number // wide
        for policy, mine in cells.items():
            shown = mine[0]["curves"]
            ready = np.array(shown["ready"][pool])
            kept = _changes(ready[None, :])
            t = np.array(shown["timeline_t_s"])[kept] / scale
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": policy,
                    "legendgroup": policy,
                    "showlegend": number == 0,
                    "x": _rounded(t, 3),
                    "y": ready[kept].tolist(),
                    "line": {"color": colours[policy], "width": 1.8, "shape": "hv"},
                    "xaxis": x_name,
                    "yaxis": y_name,
                    "hovertemplate": "%{y} ready",
                }
            )
        bottom = number + wide >= len(order)
        figure_layout[axis_name("x", number, long=True)] = axis(
            unit if bottom else "", domain=across[column], anchor=y_name, showgrid=False
        )
        figure_layout[axis_name("y", number, long=True)] = axis(
            domain=down[row],
            anchor=x_name,
            rangemode="tozero",
            nticks=5,
            dtick=1 if most[number] < 5 else None,
        )
        annotations.append(panel_title(spec.pools[pool].name, across[column][0], down[row][1]))
    figure_layout["annotations"] = annotations
    figure_layout["hovermode"] = "closest"
    figure_layout["legend"] |= {"y": 1.0 + 24 / figure_layout["height"]}
    figure_layout["margin"]["t"] = 64
    return {"data": data, "layout": figure_layout}


def latency_cdfs(cells: Cells, spec: ClusterSpec, colours: dict[str, str]) -> Figure:
    """Share of offered requests within a latency; TTFT left and ITL right.

    A row per class that has requests.
    """
    classes = _asked_for(cells, spec)
    across = columns(2, 0.08)
    data: list[Figure] = []
    shapes: list[Figure] = []
    annotations: list[Figure] = []
    figure_layout = layout(110 + 205 * len(classes), hovermode="closest")
    down = rows(len(classes), 58 / figure_layout["height"])
    for index, (place, slo_class) in enumerate(classes):
        sides = (("ttft_ms", "TTFT", slo_class.ttft_ms), ("itl_ms", "ITL", slo_class.itl_ms))
        for side, (key, name, target) in enumerate(sides):
            number = 2 * index + side
            x_name, y_name = axis_name("x", number), axis_name("y", number)
            for policy, mine in cells.items():
                x, y = _pooled_cdf(mine, key, place)
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": policy,
                        "legendgroup": policy,
                        "showlegend": number == 0,
                        "x": x,
                        "y": y,
                        "line": {"color": colours[policy], "width": 2},
                        "xaxis": x_name,
                        "yaxis": y_name,
                        "hovertemplate": f"{policy}: %{{y:.1f}} % within %{{x:.4g}} ms"
                        "<extra></extra>",
                    }
                )
            shapes.append(_target_line(target, x_name, y_name))
            figure_layout[axis_name("x", number, long=True)] = latency_axis(
                fine=side == 1, domain=across[side], anchor=y_name
            )
            figure_layout[axis_name("y", number, long=True)] = axis(
                domain=down[index], anchor=x_name, range=[0, 102], ticksuffix=" %", nticks=5
            )
            title = f"{slo_class.name}, {name} (target {target:g} ms)"
            annotations.append(panel_title(title, across[side][0], down[index][1]))
    figure_layout |= {"shapes": shapes, "annotations": annotations}
    figure_layout["legend"] |= {"y": 1.0 + 24 / figure_layout["height"]}
    figure_layout["margin"]["t"] = 64
    return {"data": data, "layout": figure_layout}


def _target_line(target: float, x_name: str, y_name: str) -> Figure:
    return {
        "type": "line",
        "xref": x_name,
        "yref": f"{y_name} domain",
        "x0": target,
        "x1": target,
        "y0": 0,
        "y1": 1,
        "line": {"color": TARGET, "width": 1.6, "dash": "dash"},
    }


def _pooled_cdf(cells: list[CellData], key: str, index: int) -> tuple[list[float], list[float]]:
    """Latencies and the share of offered requests within them, mean of the seeds' shares."""
    curves = []
    for cell in cells:
        shares = np.array(cell["curves"]["quantiles"])
        values = np.array([np.nan if v is None else v for v in cell["curves"][key][index]])
        served = ~np.isnan(values)
        if served.any():
            # A log axis has no zero: a request of one output token has no latency between tokens.
            curves.append((np.maximum(values[served], 1e-1), shares[served]))
    if not curves:
        return [], []
    low = min(values[0] for values, _ in curves)
    high = max(values[-1] for values, _ in curves)
    grid = np.geomspace(low, high, _CDF_POINTS)
    total = sum(np.interp(grid, values, shares, left=0.0) for values, shares in curves)
    shown = [float(f"{x:.4g}") for x in grid]
    return shown, _rounded(100.0 * np.asarray(total) / len(cells), 1)


def _changes(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples at which any of several step functions [functions][samples] changes, and the ends."""
    keep = np.ones(levels.shape[1], dtype=np.bool_)
    keep[1:-1] = (levels[:, 1:-1] != levels[:, :-2]).any(axis=0)
    return np.flatnonzero(keep)


def _uneven_rows(weights: Sequence[float]) -> list[tuple[float, float]]:
    """Vertical domains with heights in proportion to the weights, the first on top."""
    gap = 0.2 / len(weights)
    heights = np.array(weights) / sum(weights) * (1.0 - gap * (len(weights) - 1))
    tops = 1.0 - np.concatenate([[0.0], np.cumsum(heights + gap)[:-1]])
    return [(float(top - h), float(top)) for top, h in zip(tops, heights, strict=True)]


def _time_unit(cells: Cells) -> tuple[float, str]:
    """Seconds per unit of the time axis, and its name."""
    last = max(c["curves"]["t_s"][-1] for mine in cells.values() for c in mine)
    return (3600.0, "hours") if last > 3 * 3600 else (60.0, "minutes")


def _rounded(values: Any, digits: int) -> list[float]:
    return [round(float(x), digits) for x in values]
