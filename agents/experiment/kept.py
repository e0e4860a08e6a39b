"""Small files beside the runs: written here, committed, and read with their shape checked."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from agents.experiment.config import ExperimentError
from hrl_planner._spec_file import describe

T = TypeVar("T")


def read_kept(path: Path, shape: TypeAdapter[T], absent: T) -> T:
    """Return what a file of JSON holds.

    Args:
        path: the file.
        shape: of its content.
        absent: what is returned where there is no file.

    Raises:
        ExperimentError: naming the file, the field and the value.
    """
    if not path.exists():
        return absent
    try:
        return shape.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ExperimentError(describe(error, str(path))) from error
