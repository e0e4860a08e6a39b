"""What an experiment consists of, as a YAML file says it (experiments/experiment/*.yaml).

The schema refuses an experiment that would look at days that are not for tests (`agents.days`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agents.days import FIRST_VALIDATION_DAY
from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import HrlPlannerError

TableName = Literal["entries", "cells", "comparisons", "front", "groups", "seeds", "needs"]
FigureName = Literal["profiles", "tightness", "fronts"]
_LABEL = r"^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?$"


class ExperimentError(HrlPlannerError):
    """An experiment that cannot be run or reported as asked."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Truth(_Model):
    """How the cluster differs from what planners are told of it."""

    startup: float = Field(1.0, gt=0, description="factor on every start-up time")
    latency_error: float = Field(
        0.0, ge=0, lt=1, description="step times per pool are off by up to this share, drawn anew"
    )
    scrape_lag_s: float | None = Field(None, ge=0, description="absent: as the spec says")

    @property
    def is_told(self) -> bool:
        """Whether planners know the cluster as it is."""
        return self == Truth()


class Swap(_Model):
    """One GPU type of the spec replaced by another, known to everyone."""

    gpu_type: str
    to: str
    system: tuple[str, str] = Field(description="part of the profiles' names, and what it becomes")
    price_per_gpu_hour: float = Field(ge=0)


class CellGroup(_Model):
    """Workloads times tightness: a block of cells, and one row of the generalisation table."""

    group: str = Field("", description="absent for the cells of the main result")
    about: str = ""
    spec: str = "reference"
    scenarios: tuple[str, ...] = ()
    recordings: tuple[str, ...] = Field((), description="names of trace files, see --traces")
    tightness: tuple[float, ...] = Field(min_length=1)
    duration_s: float | None = Field(None, gt=0, description="absent: the scenario's own")
    load: float = Field(1.0, gt=0)
    need: float | None = Field(None, gt=0, description="absent: computed, see docs/experiment.md")
    truth: Truth = Truth()
    swap: Swap | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        from hrl_planner.workload.scenarios import SCENARIOS

        if not self.scenarios and not self.recordings:
            raise ValueError("no workload: give scenarios or recordings")
        for name in self.scenarios:
            if name not in SCENARIOS:
                raise ValueError(f"unknown scenario {name!r}; one of {', '.join(SCENARIOS)}")
        if any(factor <= 0 for factor in self.tightness):
            raise ValueError(f"tightness must be > 0, got {list(self.tightness)}")
        return self


class Entry(_Model):
    """A planner under a label: one policy, or the same one trained under several seeds."""

    label: str = Field(pattern=_LABEL)
    policy: str = Field(description="as the registry spells it; {seed} stands for a training seed")
    seeds: int = Field(1, ge=1, description="number of training seeds")
    about: str = ""
    optional: bool = Field(False, description="left out with a note where it cannot be made")
    bound: bool = Field(False, description="says what could be, is no planner; not in figures")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seeds > 1 and "{seed}" not in self.policy:
            raise ValueError(f"{self.seeds} training seeds, but {self.policy!r} names no {{seed}}")
        return self

    @property
    def policies(self) -> tuple[str, ...]:
        """One policy per training seed."""
        return tuple(self.policy.replace("{seed}", str(seed)) for seed in range(self.seeds))


class ExperimentConfig(_Model):
    """The whole experiment.

    The fields `subject` to `front` give entries their parts in the comparison.
    """

    name: str = Field(pattern=_LABEL)
    title: str
    about: str = ""
    results: Path = Path("experiments/results")
    traces: int = Field(20, ge=1, description="paired test traces per cell, seeds from 0")
    grace_s: float = Field(600.0, ge=0)
    cells: tuple[CellGroup, ...] = Field(min_length=1)
    entries: tuple[Entry, ...] = Field(min_length=1)
    subject: str = Field(description="the entry the experiment is about")
    baseline: str = Field(description="what all are compared with, run by run")
    against: tuple[str, ...] = Field(
        (), description="comparisons chosen beforehand, Holm-corrected"
    )
    zero: str | None = Field(
        None, description="scores 0 after normalisation: the best static split"
    )
    one: tuple[str, ...] = Field(
        (), description="scores 1: perfect foresight, in each cell the best of these settings"
    )
    front: tuple[str, ...] = Field((), description="entries whose front is compared with")
    tolerance: float = Field(0.005, ge=0, description="loss in a cell that counts as none")
    least_gap: float = Field(
        0.01, gt=0, description="cells in which 0 and 1 are nearer than this are not normalised"
    )

    tables: tuple[TableName, ...] = ("entries", "cells", "comparisons", "front", "seeds", "needs")
    figures: tuple[FigureName, ...] = ("profiles", "tightness", "fronts")

    @field_validator("traces")
    @classmethod
    def _only_test_days(cls, traces: int) -> int:
        if traces > FIRST_VALIDATION_DAY:
            raise ValueError(
                f"{traces} traces would reach into the validation seeds, which begin at "
                f"{FIRST_VALIDATION_DAY}"
            )
        return traces

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [entry.label for entry in self.entries]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"entries: the label {label!r} is used more than once")
        named = (self.subject, self.baseline, *self.against, *self.front, *self.one)
        for label in (*named, *([] if self.zero is None else [self.zero])):
            if label not in labels:
                raise ValueError(f"{label!r} is not an entry; there are: {', '.join(labels)}")
        return self

    @staticmethod
    def load(path: Path) -> ExperimentConfig:
        """Read an experiment.

        Raises:
            ExperimentError: the file, the field and the value that are wrong.
        """
        data = read_mapping(path, "description of an experiment", ExperimentError)
        try:
            return ExperimentConfig.model_validate(data)
        except ValidationError as error:
            raise ExperimentError(describe(error, path.name)) from error

    def about_entry(self, label: str) -> ExperimentConfig:
        """The same experiment with another subject.

        Raises:
            ExperimentError: there is no such entry.
        """
        labels = [entry.label for entry in self.entries]
        if label not in labels:
            raise ExperimentError(f"subject {label!r}: no entry; one of {', '.join(labels)}")
        return self.model_copy(update={"subject": label})

    def entry(self, label: str) -> Entry:
        """The entry of a label."""
        return next(entry for entry in self.entries if entry.label == label)
