"""Colours and the common look of every figure.

A policy keeps its colour in all figures, and so does a pool: the hue tells its GPU type, dark
shades are prefill and light ones decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

Layout = dict[str, Any]

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1f2933"
MUTED = "#62707d"
GRID = "#e8ecf0"
TARGET = "#b42318"

_POLICY_COLOURS = (
    "#3b63c4", "#e4572e", "#2e9e5b", "#8e55c7", "#d99a00", "#17a2b8", "#9c6b4e", "#e377a8",
    "#6b7785", "#7aa315", "#14532d", "#7f1d3f", "#c2185b", "#0b7285", "#f0a05f", "#4a1d96",
)  # fmt: skip
# One family per GPU type, from dark to light.
_POOL_FAMILIES = (
    ("#1d4e89", "#3a74b8", "#6fa3d8", "#a9cbee"),
    ("#a8480b", "#d9722a", "#f0a05f", "#f8cda5"),
    ("#1e6b45", "#3d9a69", "#7cc39d", "#b6e0c9"),
    ("#5b3a8c", "#8562b8", "#ad93d6", "#d5c6ec"),
    ("#7a6a10", "#ab9728", "#cfbf5c", "#e8dea0"),
)
_ROLE_ORDER = {"prefill": 0, "aggregated": 1, "decode": 2}


def policy_colours(policies: Sequence[str]) -> dict[str, str]:
    """Colour of each policy."""
    return {p: _POLICY_COLOURS[i % len(_POLICY_COLOURS)] for i, p in enumerate(policies)}


def pool_order(spec: ClusterSpec) -> list[int]:
    """Pools by GPU type, then prefill before decode: the order in which they are stacked."""
    return sorted(
        range(len(spec.pools)),
        key=lambda i: (spec.pools[i].gpu_type, _ROLE_ORDER[spec.pools[i].role], i),
    )


def pool_colours(spec: ClusterSpec) -> list[str]:
    """Colour of each pool, in spec order."""
    colours = [""] * len(spec.pools)
    order = pool_order(spec)
    for number, gpu_type in enumerate(spec.gpu_types):
        family = _POOL_FAMILIES[number % len(_POOL_FAMILIES)]
        members = [i for i in order if spec.pools[i].gpu_type == gpu_type]
        for rank, index in enumerate(members):
            shade = round(rank * (len(family) - 1) / max(1, len(members) - 1))
            colours[index] = family[shade]
    return colours


def layout(height: int, **changes: Any) -> Layout:
    """The look all figures share."""
    base: Layout = {
        "height": height,
        "margin": {"l": 62, "r": 18, "t": 34, "b": 46},
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "x unified",
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "bgcolor": "#ffffff"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b4bec8", "activecolor": "#3b63c4"},
        "showlegend": True,
    }
    return base | changes


def axis(title: str = "", **changes: Any) -> Layout:
    """One axis with a light grid."""
    base: Layout = {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 8},
        "gridcolor": GRID,
        "linecolor": "#c4ccd4",
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#c4ccd4",
        "tickfont": {"size": 11.5, "color": MUTED},
    }
    return base | changes


def panel_title(text: str, x: float, y: float, **changes: Any) -> Layout:
    """Heading of one panel of a grid, in paper coordinates."""
    base: Layout = {
        "text": f"<b>{text}</b>",
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12.5, "color": INK},
    }
    return base | changes


def rgba(colour: str, opacity: float) -> str:
    """A hex colour with opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def latency_axis(*, fine: bool, **changes: Any) -> Layout:
    """Logarithmic axis in ms whose ticks are words: 30 ms, 1 s.

    Args:
        fine: more ticks per decade, for quantities that span few decades.
        changes: fields of the axis.
    """
    steps = (1, 2, 3, 5) if fine else (1, 3)
    ticks = [step * 10.0**power for power in range(-1, 7) for step in steps]
    texts = [f"{x:g} ms" if x < 1000 else f"{x / 1000:g} s" for x in ticks]
    return axis(type="log", tickvals=ticks, ticktext=texts, **changes)
