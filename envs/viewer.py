"""Pictures of a cluster for people: text for terminals, an image for notebooks and videos.

One line per pool: replicas as cells of a bar (ready, starting, draining, pending, the quota's
mark), queue, KV use; below, attainment per class and GPUs by type against the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.controlled import Run
from hrl_planner.observation import POOL_FIELDS

_WIDTH = 1120
_ROW = 34
_LEFT = 210
_BAR = 420
_READY, _STARTING, _DRAINING, _PENDING = (
    (46, 125, 50),
    (249, 168, 37),
    (120, 144, 156),
    (198, 40, 40),
)
_INK, _FAINT, _EMPTY, _BLUE = (33, 33, 33), (117, 117, 117), (236, 239, 241), (30, 100, 190)
_CELLS = (("ready", "#", _READY), ("starting", "+", _STARTING), ("draining", "-", _DRAINING),
          ("pending", "?", _PENDING))  # fmt: skip


@dataclass(frozen=True)
class _Pool:
    name: str
    counts: tuple[int, ...]  # in the order of _CELLS
    quota: int
    most: int
    waiting: float
    kv_use: float


@dataclass(frozen=True)
class _Scene:
    title: str
    pools: list[_Pool]
    classes: list[tuple[str, float, float]]  # name, attainment, requests in the system
    gpus: list[tuple[str, int, int]]  # type, held, budget


def _scene(run: Run) -> _Scene:
    spec, cluster = run.episode.spec, run.simulation.cluster
    observation = run.simulation.observe()
    rows = {name: observation.pools[:, POOL_FIELDS.index(name)] for name in POOL_FIELDS}
    pools = [
        _Pool(
            pool.name,
            tuple(int(rows[name][i]) for name, _, _ in _CELLS),
            int(rows["quota"][i]),
            pool.max_replicas,
            float(rows["waiting"][i]),
            float(rows["kv_use"][i]),
        )
        for i, pool in enumerate(spec.pools)
    ]
    kinds = cluster.classes
    classes = [
        (
            slo.name,
            float(kinds["attained"][c] / kinds["offered"][c]) if kinds["offered"][c] else np.nan,
            float(kinds["offered"][c] - kinds["resolved"][c]),
        )
        for c, slo in enumerate(spec.slo_classes)
    ]
    held = np.zeros(len(spec.gpu_types), np.int64)
    for i, pool in enumerate(spec.pools):
        held[spec.gpu_types.index(pool.gpu_type)] += (
            sum(pools[i].counts[:3]) * pool.gpus_per_replica
        )
    gpus = [(kind, int(held[k]), spec.budget.gpus[kind]) for k, kind in enumerate(spec.gpu_types)]
    minutes, seconds = divmod(int(run.now_s), 60)
    title = f"{spec.name} / {run.episode.name}   {minutes:d}:{seconds:02d}"
    return _Scene(title, pools, classes, gpus)


def _number(value: float, form: str) -> str:
    return "?" if np.isnan(value) else format(value, form)


def text(run: Run) -> str:
    """Return the cluster in characters: `#` ready, `+` starting, `-` draining, `?` pending."""
    scene = _scene(run)
    lines = [scene.title, "# ready  + starting  - draining  ? pending  | quota"]
    name_width = max(len(pool.name) for pool in scene.pools)
    bar_width = min(40, max(sum(p.counts) + 1 for p in scene.pools) + 8)
    for pool in scene.pools:
        cells = "".join(
            mark * count for (_, mark, _), count in zip(_CELLS, pool.counts, strict=True)
        )
        bar = list(cells.ljust(min(pool.most, bar_width), ".")[:bar_width])
        bar.insert(min(pool.quota, len(bar)), "|")
        lines.append(
            f"{pool.name:<{name_width}}  {''.join(bar):<{bar_width + 1}} "
            f"{pool.counts[0]:>3}/{pool.quota:<3} waiting {_number(pool.waiting, '.0f'):>5}  "
            f"KV {_number(pool.kv_use, '.0%'):>4}"
        )
    for name, kept, inside in scene.classes:
        lines.append(f"class {name:<16} attained {_number(kept, '.1%'):>6}  in system {inside:.0f}")
    lines.append("GPUs  " + "  ".join(f"{kind} {held}/{most}" for kind, held, most in scene.gpus))
    return "\n".join(lines)


def picture(run: Run) -> NDArray[np.uint8]:
    """Return the cluster as an image, uint8 (height, 1120, 3)."""
    scene = _scene(run)
    lower = max(len(scene.classes), len(scene.gpus))
    image = Image.new("RGB", (_WIDTH, 96 + _ROW * (len(scene.pools) + lower) + 40), "white")
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    draw.text((20, 12), scene.title, _INK, large)
    _legend(draw, small)
    y = 84
    most = max(max(pool.most, sum(pool.counts)) for pool in scene.pools)
    for pool in scene.pools:
        _draw_pool(draw, small, pool, y, most)
        y += _ROW
    y += 16
    draw.text((20, y), "attained so far", _FAINT, small)
    draw.text((600, y), "GPUs held of budget", _FAINT, small)
    y += 24
    for row, (name, kept, inside) in enumerate(scene.classes):
        at = y + row * _ROW
        draw.text((20, at + 2), name, _INK, small)
        share = 0.0 if np.isnan(kept) else kept
        _gauge(draw, (_LEFT, at, _LEFT + 200, at + 18), share, _READY)
        label = f"{_number(kept, '.1%')}   {inside:.0f} in system"
        draw.text((_LEFT + 210, at + 1), label, _INK, small)
    for row, (kind, held, budget) in enumerate(scene.gpus):
        at = y + row * _ROW
        draw.text((600, at + 2), kind, _INK, small)
        _gauge(draw, (680, at, 980, at + 18), held / max(budget, 1), _BLUE)
        draw.text((990, at + 1), f"{held} / {budget}", _INK, small)
    return np.asarray(image, np.uint8)


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    x = _LEFT
    for name, _, colour in _CELLS:
        draw.rectangle((x, 54, x + 12, 66), fill=colour)
        draw.text((x + 18, 51), name, _FAINT, font)
        x += 90
    draw.line((x + 4, 51, x + 4, 69), fill=_INK, width=3)
    draw.text((x + 12, 51), "quota", _FAINT, font)
    draw.text((_LEFT + _BAR + 20, 51), "ready/quota", _FAINT, font)
    draw.text((_LEFT + _BAR + 120, 51), "KV use", _FAINT, font)
    draw.text((_LEFT + _BAR + 300, 51), "waiting", _FAINT, font)


def _gauge(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    share: float,
    colour: tuple[int, int, int],
) -> None:
    draw.rectangle(box, fill=_EMPTY)
    width = round((box[2] - box[0]) * min(max(share, 0.0), 1.0))
    if width > 0:
        draw.rectangle((box[0], box[1], box[0] + width, box[3]), fill=colour)


def _draw_pool(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    pool: _Pool,
    y: int,
    most: int,
) -> None:
    draw.text((20, y + 2), pool.name, _INK, font)
    cell = _BAR / most
    gap = 2 if cell > 6 else 0
    for k in range(pool.most):
        draw.rectangle((_LEFT + k * cell, y, _LEFT + (k + 1) * cell - 1 - gap, y + 20), fill=_EMPTY)
    k = 0
    for (_, _, colour), count in zip(_CELLS, pool.counts, strict=True):
        for _ in range(count):
            draw.rectangle(
                (_LEFT + k * cell, y, _LEFT + (k + 1) * cell - 1 - gap, y + 20), fill=colour
            )
            k += 1
    x = _LEFT + pool.quota * cell - gap / 2
    draw.line((x, y - 4, x, y + 24), fill=_INK, width=3)
    right = _LEFT + _BAR + 20
    draw.text((right, y + 2), f"{pool.counts[0]}/{pool.quota}", _INK, font)
    use = 0.0 if np.isnan(pool.kv_use) else pool.kv_use
    _gauge(draw, (right + 100, y + 2, right + 220, y + 18), use, _PENDING if use > 0.9 else _BLUE)
    draw.text((right + 228, y + 2), _number(pool.kv_use, ".0%"), _INK, font)
    draw.text((right + 280, y + 2), _number(pool.waiting, ".0f"), _INK, font)
