"""Which days are for what. A seed makes a day: its requests, its bursts, its start-up luck.

Days before `FIRST_VALIDATION_DAY` are for tests and nothing else; from there on for validation
(choosing parameters and checkpoints, the need that budgets are measured in), and from
`FIRST_TRAINING_DAY` on for training.
"""

from __future__ import annotations

FIRST_VALIDATION_DAY = 100
FIRST_TRAINING_DAY = 1000
