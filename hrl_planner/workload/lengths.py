"""How long prompts and answers are.

Served lengths are heavy-tailed: in the public traces the coefficient of variation of the prompt
lies between 0.9 and 1.5 and the longest prompts are ten times the mean. A `Lengths` draws whole
numbers of tokens with a given mean, spread and bounds, for all requests at once; the mean may
differ per request, which is how rate curves make lengths drift over a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload.trace import MAX_TOKENS

Distribution = Literal["constant", "exponential", "lognormal"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts.

    Attributes:
        mean: mean before bounds, tokens. A lognormal cut off at `high` ends up a little below it.
        distribution: ``lognormal`` suits prompts; ``exponential`` is what outputs of one kind of
            task look like (ServeGen); ``constant`` is for tests and stress.
        cv: standard deviation over mean, for ``lognormal``.
        low: shortest length drawn; shorter draws become it.
        high: longest length drawn; longer draws become it.
    """

    mean: float
    distribution: Distribution = "lognormal"
    cv: float = 1.0
    low: int = 1
    high: int = 131_072

    def __post_init__(self) -> None:
        """Refuse distributions that a trace could not hold."""
        if not (np.isfinite(self.mean) and self.mean > 0):
            raise TraceError(f"lengths field mean: must be > 0, got {self.mean}")
        if not (np.isfinite(self.cv) and self.cv >= 0):
            raise TraceError(f"lengths field cv: must be >= 0, got {self.cv}")
        if not 1 <= self.low <= self.high <= MAX_TOKENS:
            raise TraceError(
                f"lengths fields low, high: must satisfy 1 <= low <= high <= {MAX_TOKENS}, "
                f"got {self.low}, {self.high}"
            )

    def sample(
        self, n: int, rng: np.random.Generator, mean: NDArray[np.float64] | None = None
    ) -> NDArray[np.int64]:
        """Draw n lengths; `mean`, one value per request, replaces the mean of the distribution."""
        return self.tokens(self.draw(n, rng), self.mean if mean is None else mean)

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the randomness of n lengths; `tokens` makes lengths of it."""
        if self.distribution == "exponential":
            return rng.standard_exponential(n)
        if self.distribution == "lognormal" and self.cv > 0:
            return rng.standard_normal(n)
        return np.zeros(n)

    def tokens(
        self, drawn: NDArray[np.float64], mean: float | NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Turn what `draw` gave into whole lengths within the bounds."""
        if self.distribution == "exponential":
            length = mean * drawn
        elif self.distribution == "lognormal" and self.cv > 0:
            variance = np.log1p(self.cv**2)
            length = np.sqrt(variance) * drawn
            length -= variance / 2
            np.exp(length, out=length)
            length *= mean
        else:
            length = drawn + mean
        np.rint(length, out=length)
        return np.clip(length, self.low, self.high, out=length).astype(np.int64)
