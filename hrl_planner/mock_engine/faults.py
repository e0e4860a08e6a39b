"""What can be made to go wrong: slowness, a hang, refusals, death in mid-stream.

Faults are a state, not events: `POST /fault` replaces it as a whole, and `{}` ends them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from hrl_planner.errors import EngineError

_GRAMMAR = "expected slow:FACTOR, hang, error:SHARE or die:after=TOKENS"


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that is wrong with an engine.

    Attributes:
        slow: every step takes this many times as long.
        hang: steps begin and never end.
        error: share of requests that are answered 500.
        die_after: the process kills itself when a stream has this many tokens.
    """

    slow: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    hang: bool = False
    error: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    die_after: Annotated[int, msgspec.Meta(ge=1)] | None = None


def parse_faults(words: Sequence[str]) -> Faults:
    """Return the faults that `--fault` options name."""
    fields: dict[str, object] = {}
    for word in words:
        kind, _, value = word.partition(":")
        try:
            match kind:
                case "slow" | "error":
                    fields[kind] = float(value)
                case "hang" if not value:
                    fields[kind] = True
                case "die" if value.startswith("after="):
                    fields["die_after"] = int(value.removeprefix("after="))
                case _:
                    raise ValueError(_GRAMMAR)
        except ValueError as error:
            raise EngineError(f"--fault {word}: {_GRAMMAR}") from error
    try:
        return msgspec.convert(fields, Faults)
    except msgspec.ValidationError as error:
        raise EngineError(f"--fault {' '.join(words)}: {error}") from error
