"""Paired comparison of policies: run, measure, estimate, report.

    config -> runner (cells in parallel, kept by store) -> summary -> report

One cell is one policy on one workload under one seed (`cell.py`). `evaluate` does all of it.
Nothing heavy is imported until a function needs it.
"""

from agents.evaluate.cases import Workload
from agents.evaluate.config import Cell, EvaluationConfig
from agents.evaluate.evaluation import Evaluation, evaluate
from agents.evaluate.runner import Failure, Progress
from agents.evaluate.statistics import Estimate, iqm, paired_difference, probability_of_improvement
from agents.evaluate.store import EvaluationError

__all__ = [
    "Cell",
    "Estimate",
    "Evaluation",
    "EvaluationConfig",
    "EvaluationError",
    "Failure",
    "Progress",
    "Workload",
    "evaluate",
    "iqm",
    "paired_difference",
    "probability_of_improvement",
]
