"""The report of a demonstration: both runs side by side, as a page, Markdown and columns.

OUT/report.html       tables and figures; one file that opens anywhere and fetches nothing
OUT/report.md         what agrees and the tables
OUT/agreement.json    the same numbers for programs
OUT/cluster.parquet, cluster-timeline.parquet, simulator.parquet, simulator-timeline.parquet
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from agents.agreement.compare import ATTAINMENT_POINTS, Agreement
from agents.agreement.figures import trajectories
from agents.evaluate import figures_time
from agents.evaluate.config import code_digest
from agents.evaluate.curves import reduce_run
from agents.evaluate.metrics import ALL_CLASSES, Row, compute
from agents.evaluate.report import embeddable
from agents.evaluate.store import write_atomically
from agents.evaluate.summary import HEADLINE, metric_of
from agents.evaluate.tables import write_run
from agents.evaluate.theme import policy_colours

if TYPE_CHECKING:
    from rich.table import Table

_CLASS_METRICS = (
    "offered", "attainment", "ttft_attainment", "itl_attainment", "goodput_rps",
    "ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms",
    "prefix_hit_rate", "unfinished", "rejected",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of both runs."""

    label: str
    help: str
    texts: tuple[str, ...]


def terminal_table(found: Agreement) -> Table:
    """What agrees and what does not, for the terminal."""
    from rich.table import Table

    table = Table(show_header=False, box=None, title="cluster and simulator", title_justify="left")
    colours = {"agrees": "green", "spread": "yellow", "differs": "red"}
    for verdict, sentence in found.findings:
        table.add_row(f"[{colours[verdict]}]{verdict}[/]", sentence)
    return table


def write_report(found: Agreement, folder: Path, command: str) -> list[Path]:
    """Write everything; the paths written.

    Args:
        found: the comparison.
        folder: where to.
        command: shown in the report so that it can be made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = _lines(found)
    paths = [folder / name for name in ("report.html", "report.md", "agreement.json")]
    write_atomically(paths[0], _page(found, lines, command))
    write_atomically(paths[1], _markdown(found, lines, command))
    write_atomically(paths[2], json.dumps(_plain(found), indent=1))
    for run in (found.cluster, found.simulator):
        paths += write_run(run.result, folder / run.name)
    return paths


def _lines(found: Agreement) -> dict[str, list[Line]]:
    """Return the table of the whole run and one per class."""
    both = [compute(run.result) for run in (found.cluster, found.simulator)]
    tables = {}
    for rows in zip(*both, strict=True):
        name = str(rows[0]["class"])
        metrics = _CLASS_METRICS if name != ALL_CLASSES else (*HEADLINE, *_per_type(rows[0]))
        tables[name] = [_line(metric, rows) for metric in metrics]
    return tables


def _per_type(row: Row) -> list[str]:
    return [name for name in row if name.startswith("gpu_hours_")]


def _line(name: str, rows: tuple[Row, ...]) -> Line:
    metric = metric_of(name)
    texts = tuple(_text(name, float(row[name])) for row in rows)
    return Line(metric.label, metric.help, texts)


def _text(name: str, value: float) -> str:
    # Minutes on a few GPUs: an hour with one decimal would say nothing.
    return f"{value:.3f} h" if name.startswith("gpu_hours") else metric_of(name).format(value)


def _page(found: Agreement, lines: dict[str, list[Line]], command: str) -> str:
    from importlib.metadata import version

    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("agents.agreement", "."), PackageLoader("agents.evaluate", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    spec, result = found.spec, found.cluster.result
    findings = found.findings
    return environment.get_template("agreement.html.j2").render(
        spec=spec,
        budget=", ".join(f"{n} {kind}" for kind, n in sorted(spec.budget.gpus.items())),
        policy=found.policy,
        requests=result.arrival_s.size,
        duration_s=result.duration_s,
        speed=found.speed,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        colours=policy_colours([run.name for run in (found.cluster, found.simulator)]),
        over=found.cluster.looks_over,
        findings=findings,
        missed=sum(verdict == "differs" for verdict, _ in findings),
        points=ATTAINMENT_POINTS,
        tolerance_s=found.tolerance_s,
        client_late_ms=found.client_late_ms,
        excess=_excess(found),
        placed=_placed(found),
        headline=lines[ALL_CLASSES],
        per_class=[(name, table) for name, table in lines.items() if name != ALL_CLASSES],
        accounts=found.accounts,
        command=command,
        versions=f"hrl-planner {version('hrl-planner')}, sources {code_digest()}",
        spec_yaml=yaml.safe_dump(
            spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100
        ),
        figures_json=embeddable(_figures(found)),
        plotly_js=get_plotlyjs(),
    )


def _excess(found: Agreement) -> str:
    quantiles = ", ".join(f"{ms:.0f} ms ({q} %)" for q, ms in found.ttft_excess_ms.items())
    return f"a request's first token came later than simulated by: {quantiles}"


def _placed(found: Agreement) -> list[tuple[str, str, list[str]]]:
    """Return class, pool and the share of the class's requests that each run sent there."""
    rows = []
    for index, slo in enumerate(found.spec.slo_classes):
        for pool in found.spec.pools:
            texts = []
            for run in (found.cluster, found.simulator):
                offered = int((run.result.class_id == index).sum())
                count = run.placed.get((slo.name, pool.name), 0)
                texts.append(f"{count / offered:.0%}" if offered else "-")
            rows.append((slo.name, pool.name, texts))
    return rows


def _figures(found: Agreement) -> dict[str, Any]:
    runs, spec = (found.cluster, found.simulator), found.spec
    colours = policy_colours([run.name for run in runs])
    cells = {run.name: [{"seed": 0, "curves": reduce_run(run.result)}] for run in runs}
    return {
        "trajectories": trajectories(runs, spec, colours),
        "gpus": figures_time.gpus_against_budget(cells, spec),
        "attainment": figures_time.attainment_over_time(cells, spec, colours),
        "latency": figures_time.latency_cdfs(cells, spec, colours),
    }


def _markdown(found: Agreement, lines: dict[str, list[Line]], command: str) -> str:
    result = found.cluster.result
    text = [
        f"# {found.spec.name}: a real API server beside the simulator",
        "",
        f"Planned by {found.policy}; {result.arrival_s.size:,} requests in "
        f"{result.duration_s:g} s. Written by `{command}`.",
        "",
    ]
    text += [f"- {verdict}: {words}" for verdict, words in found.findings]
    for name, table in lines.items():
        text += ["", f"## {name}", "", "| | cluster | simulator |", "|---|---:|---:|"]
        text += [f"| {line.label} | {' | '.join(line.texts)} |" for line in table]
    text += ["", "## Where requests went", "", "| class | pool | cluster | simulator |"]
    text += ["|---|---|---:|---:|"]
    text += [f"| {name} | {pool} | {' | '.join(texts)} |" for name, pool, texts in _placed(found)]
    text += ["", f"Of all requests that both answered, {_excess(found)}."]
    return "\n".join([*text, ""])


def _plain(found: Agreement) -> dict[str, Any]:
    return {
        "policy": found.policy,
        "attainment_percent": {
            name: asdict(one) | {"verdict": one.verdict} for name, one in found.attainment.items()
        },
        "trajectories": [asdict(one) | {"verdict": one.verdict} for one in found.trajectories],
        "looks": found.cluster.looks,
        "looks_over_budget": found.cluster.looks_over,
        "client_late_ms": found.client_late_ms,
        "ttft_excess_ms": found.ttft_excess_ms,
        "speed": found.speed,
        "accounts": found.accounts,
        "differs": sum(verdict == "differs" for verdict, _ in found.findings),
    }
