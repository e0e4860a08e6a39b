"""One call at a time works in a folder: two would write over each other what they save."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hrl_planner.errors import TrainingError


@contextmanager
def alone(folder: Path, what: str, file: str) -> Iterator[None]:
    """Hold a folder; it is let go of with the process, however that ends.

    Args:
        folder: made where it is not there.
        what: it is, for the message.
        file: of the lock, in the folder.

    Raises:
        TrainingError: another call holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"{what} {folder}: another call works in it; wait for it, or choose another --out"
            ) from error
        yield
