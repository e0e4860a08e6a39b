"""`report.html`: one file that opens anywhere, without a network, and can be sent to a colleague.

The page is a template (`report.html.j2`) filled with tables and plotly.js figures; plotly.js itself
is written into the page. Everything needed to run the comparison again stands at its end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from agents.evaluate import figures, figures_time
from agents.evaluate.config import EvaluationConfig, code_digest
from agents.evaluate.metrics import ALL_CLASSES, METRICS
from agents.evaluate.runner import Failure
from agents.evaluate.statistics import Estimate
from agents.evaluate.store import write_atomically
from agents.evaluate.summary import (
    HEADLINE,
    Line,
    Results,
    best_index,
    columns_of,
    comparison_lines,
    interval_text,
    metric_of,
)
from agents.evaluate.theme import policy_colours

_CLASS_METRICS = (
    "offered",
    "attainment",
    "goodput_rps",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p95_ms",
    "itl_p99_ms",
    "prefix_hit_rate",
    "unfinished",
    "rejected",
)
_MOST_NAMED = 3  # workloads in the title


@dataclass(frozen=True, slots=True)
class TableCell:
    """One value of a table, ready to print."""

    text: str
    interval: str
    best: bool


def write_report(
    path: Path,
    config: EvaluationConfig,
    results: Results,
    failures: Sequence[Failure],
    command: str,
) -> None:
    """Write the report of an evaluation.

    Args:
        path: of the HTML file.
        config: what was asked for.
        results: at least one finished run.
        failures: runs that are missing, and why.
        command: the command line that made it, shown for reproduction.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("agents.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        **_texts(config, results, failures, command),
        headline=_headline_table(results),
        per_class=[(name, _class_table(results, name)) for name in results.classes],
        workloads=_workload_sections(config, results),
        figures_json=embeddable(_all_figures(config, results)),
        plotly_js=get_plotlyjs(),
    )
    write_atomically(path, page)


def _texts(
    config: EvaluationConfig, results: Results, failures: Sequence[Failure], command: str
) -> dict[str, Any]:
    """Everything on the page that is words."""
    from importlib.metadata import version

    spec = config.spec
    violations = results.frame.loc[results.frame["class"] == ALL_CLASSES, "budget_violations"]
    budget = ", ".join(f"{n} {gpu_type}" for gpu_type, n in sorted(spec.budget.gpus.items()))
    few = len(results.workloads) <= _MOST_NAMED
    on = ", ".join(results.workloads) if few else f"{len(results.workloads)} workloads"
    return {
        "title": f"{spec.name}: {on}",
        "spec": spec,
        "budget": budget,
        "policies": policy_colours(results.policies),
        "seeds": config.seeds,
        "runs": len(results.cells),
        "requests": int(results.frame.loc[results.frame["class"] == ALL_CLASSES, "offered"].sum()),
        "findings": _findings(results),
        "violations": int(violations.sum()),
        "failures": failures,
        "metrics": [metric_of(name) for name in columns_of(results, ALL_CLASSES)],
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "versions": f"hrl-planner {version('hrl-planner')}, sources {code_digest()}",
        "spec_yaml": yaml.safe_dump(
            spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100
        ),
        "has_traces": any(w.kind == "trace" for w in config.workloads),
        "load": config.load,
        "until_s": config.until_s,
    }


def _findings(results: Results) -> list[str]:
    """Two or three sentences that say who won what; plain where intervals overlap."""
    if len(results.policies) < 2:
        return []
    found = []
    for name, verb in (("value_attainment", "meets most SLOs"), ("cost", "is cheapest")):
        metric = METRICS[name]
        estimates = {p: results.estimate(p, name) for p in results.policies}
        usable = {p: e for p, e in estimates.items() if e.runs}
        if len(usable) < 2:
            continue
        ranked = sorted(usable, key=lambda p: -metric.better * usable[p].value)
        first, second = ranked[0], ranked[1]
        sentence = (
            f"{first} {verb}: {metric.label.lower()} {_with_interval(name, usable[first])}, "
            f"then {second} with {_with_interval(name, usable[second])}."
        )
        if _overlap(usable[first], usable[second]):
            sentence += " Their intervals overlap: see the paired comparison before choosing."
        found.append(sentence)
    return found


def _with_interval(name: str, found: Estimate) -> str:
    metric = METRICS[name]
    interval = interval_text(metric, found)
    return f"{metric.format(found.value)} [{interval}]" if interval else metric.format(found.value)


def _overlap(a: Estimate, b: Estimate) -> bool:
    return a.low <= b.high and b.low <= a.high


def _headline_table(results: Results) -> list[tuple[str, str, list[TableCell]]]:
    """Rows (label, help, cells) of the table on top."""
    extra = ("prefix_hit_rate", "recovery_s", "unfinished", "rejected")
    per_type = [n for n in columns_of(results, ALL_CLASSES) if n.startswith("gpu_hours_")]
    names = list(HEADLINE)
    at = names.index("gpu_hours") + 1
    names[at:at] = per_type
    names[-1:-1] = extra
    return [_printed(line) for line in comparison_lines(results, names)]


def _class_table(results: Results, of_class: str) -> list[tuple[str, str, list[TableCell]]]:
    return [
        _printed(Line(METRICS[n].label, METRICS[n], results.all_estimates(n, of_class=of_class)))
        for n in _CLASS_METRICS
    ]


def _printed(line: Line) -> tuple[str, str, list[TableCell]]:
    best = best_index(line.metric, line.found)
    cells = [
        TableCell(line.metric.format(one.value), interval_text(line.metric, one), index == best)
        for index, one in enumerate(line.found)
    ]
    return line.label, line.metric.help, cells


def _workload_sections(config: EvaluationConfig, results: Results) -> list[dict[str, Any]]:
    """Label and description of each workload that has runs."""
    done = set(results.frame["workload"])
    return [
        {"id": f"w{index}", "label": workload.label, "about": _about(workload.kind, workload.name)}
        for index, workload in enumerate(config.workloads)
        if workload.label in done
    ]


def _about(kind: str, name: str) -> str:
    if kind == "trace":
        return f"Requests of the trace {name}; seeds draw start-up times and class assignment."
    from hrl_planner.workload.scenarios import SCENARIOS

    return SCENARIOS[name].description


def _all_figures(config: EvaluationConfig, results: Results) -> dict[str, figures.Figure]:
    """Every figure of the page by the id of its place."""
    colours = policy_colours(results.policies)
    found = {
        "intervals": figures.attainment_intervals(results),
        "actions": figures.actions(results),
    }
    if len(results.policies) > 1:
        found["pairwise"] = figures.pairwise(results)
    for index, workload in enumerate(config.workloads):
        cells = figures_time.by_policy(results.cells, results.policies, workload.label)
        if not cells:
            continue
        spec = config.spec
        found |= {
            f"w{index}-cost": figures.cost_against_attainment(results, workload.label),
            f"w{index}-attainment": figures_time.attainment_over_time(cells, spec, colours),
            f"w{index}-gpus": figures_time.gpus_against_budget(cells, spec),
            f"w{index}-replicas": figures_time.replicas_by_pool(cells, spec, colours),
            f"w{index}-latency": figures_time.latency_cdfs(cells, spec, colours),
        }
    return found


def embeddable(data: Any) -> str:
    """JSON that may stand inside a script element, whatever names it contains."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
