"""The experiment: learned planners against everything else, in parts, over several sittings.

    config (YAML) -> cells, plan -> runs (agents.evaluate.runner, kept by store)
                                      -> results -> analysis, front -> tables, figures -> report

A *cell* is a workload under a budget of a given tightness, and a stratum of every statistic. An
*entry* is a planner under a label: one policy, or one per training seed. A run is one policy of an
entry on one trace of a cell. `hrl-planner experiment` is the door; docs/experiment.md explains it.
"""

from agents.experiment.config import ExperimentConfig, ExperimentError
from agents.experiment.plan import Experiment, prepare
from agents.experiment.results import Results

__all__ = ["Experiment", "ExperimentConfig", "ExperimentError", "Results", "prepare"]
