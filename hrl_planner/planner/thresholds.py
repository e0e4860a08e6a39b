"""The rule with thresholds tuned for a spec; `agents.thresholds` tunes them by CMA-ES.

Tuned files are YAML: `spec` and `parameters`, the fields of `RuleParameters`. Those of shipped
specs lie in `tuned/`; `thresholds:file=PATH` reads another.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

from hrl_planner._spec_file import read_mapping
from hrl_planner.errors import PolicyError
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.rule import RuleParameters, RulePolicy

_TUNED = Path(__file__).parent / "tuned"


def read_parameters(path: Path) -> RuleParameters:
    """Read a tuned file.

    Raises:
        PolicyError: for a file that cannot be read, an unknown field or a value that is not a
            finite number.
    """
    data = read_mapping(path, "file of thresholds", PolicyError)
    values = data.get("parameters")
    if not isinstance(values, dict):
        raise PolicyError(f"thresholds {path}: field parameters: missing")
    known = {field.name for field in fields(RuleParameters)}
    for name, value in values.items():
        if name not in known:
            raise PolicyError(
                f"thresholds {path}: unknown parameter {name!r}; one of {', '.join(sorted(known))}"
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise PolicyError(f"thresholds {path}: {name}: {value!r} is not a number")
        if not math.isfinite(value):
            raise PolicyError(f"thresholds {path}: {name}: {value!r} is not finite")
    return RuleParameters(**{name: float(value) for name, value in values.items()})


class ThresholdsPolicy(RulePolicy):
    """The rule with the thresholds tuned for the spec it runs on.

    Args:
        file: tuned YAML; absent, the shipped one of the spec's name.
    """

    name = "thresholds"

    def __init__(self, file: str | None = None) -> None:
        """See the class."""
        super().__init__(None if file is None else read_parameters(Path(file)))
        self._by_spec = file is None

    def reset(self, context: PlanContext) -> None:
        """Load the spec's thresholds and prepare the rule."""
        if self._by_spec:
            path = _TUNED / f"{context.spec.name}.yaml"
            if not path.is_file():
                raise PolicyError(
                    f"policy thresholds: none are tuned for spec {context.spec.name!r}; run "
                    f"`python -m agents.thresholds --spec {context.spec.name} --out FILE` "
                    "and give thresholds:file=FILE"
                )
            self.parameters = read_parameters(path)
            self._array = self.parameters.to_array()
        super().reset(context)
