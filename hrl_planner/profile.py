"""Worker profiles: how long one step of a worker takes, and how much KV cache it holds.

A profile is two latency surfaces measured or predicted on a grid, one for prefill steps (batch x
new tokens per request x cached tokens in front) and one for decode steps (batch x mean context),
with the KV capacity and the power of the worker. Profiles are `.npz` files; those the shipped specs
use are package data under `hrl_planner/profiles/` (the README there says where they come from).
The file format is described in docs/profiles.md.

Interpolation is not done here: `prefill_step_ms` and `decode_step_ms` call the compiled lookups of
`hrl_planner.surface`, the same that the simulator and the planners use, and add what those cannot
do, a warning when a query leaves the grid.
"""

from __future__ import annotations

import difflib
import json
import warnings
import zipfile
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner import surface
from hrl_planner.errors import ProfileError

Floats = NDArray[np.float64]

PROFILE_DIR = Path(__file__).parent / "profiles"

# Field of WorkerProfile: array in the file.
_ARRAYS = {
    "prefill_batch": "prefill_batch",
    "prefill_new_tokens": "prefill_new_tokens",
    "prefill_prefix_tokens": "prefill_prefix",
    "prefill_ms": "prefill_ms",
    "decode_batch": "decode_batch",
    "decode_context_tokens": "decode_context",
    "decode_ms": "decode_ms",
}
_PREFILL_AXES = ("prefill_batch", "prefill_new_tokens", "prefill_prefix_tokens")
_DECODE_AXES = ("decode_batch", "decode_context_tokens")


class ProfileRangeWarning(UserWarning):
    """A latency was asked for outside the grid of its profile; the edge of the grid was used."""


@dataclass(frozen=True, eq=False)
class WorkerProfile:
    """Latency surfaces, KV capacity and power of one worker configuration.

    Axes are strictly increasing; latencies are positive milliseconds of one step. A worker whose
    weights do not fit has `kv_capacity_tokens` of 0: it can be looked at, but a spec refuses it.
    """

    name: str
    model: str
    system: str  # accelerator and form factor, as in "h200_sxm"
    tp: int  # GPUs one worker shards the model over
    backend: str  # engine and version, as in "vllm 0.24.0"
    prefill_batch: Floats = field(repr=False)  # [NB] requests in the step
    prefill_new_tokens: Floats = field(repr=False)  # [NS] new tokens per request
    prefill_prefix_tokens: Floats = field(
        repr=False
    )  # [NP] cached tokens in front of each request's new ones
    prefill_ms: Floats = field(repr=False)  # [NB, NS, NP]
    decode_batch: Floats = field(repr=False)  # [MB] running requests
    decode_context_tokens: Floats = field(repr=False)  # [MC] mean context per request
    decode_ms: Floats = field(repr=False)  # [MB, MC]
    kv_capacity_tokens: int  # whole worker, all shards together
    kv_bytes_per_token: int  # per GPU shard; times tp is what a KV transfer moves
    tdp_w_per_gpu: float
    source: str  # where the numbers come from

    def __post_init__(self) -> None:
        """Check shapes, order and signs, so that no lookup has to."""
        for key in _ARRAYS:
            values = np.array(getattr(self, key), dtype=np.float64)
            if values.size == 0 or not np.all(np.isfinite(values)):
                raise ProfileError(f"profile {self.name}: {key} is empty or not finite")
            values.flags.writeable = False
            object.__setattr__(self, key, values)
        for key in _PREFILL_AXES + _DECODE_AXES:
            axis = getattr(self, key)
            if axis.ndim != 1 or axis[0] < 0 or np.any(np.diff(axis) <= 0):
                raise ProfileError(
                    f"profile {self.name}: {key} must be a strictly increasing list of numbers "
                    f"not below 0, got {axis.tolist()}"
                )
        for key, axes in (("prefill_ms", _PREFILL_AXES), ("decode_ms", _DECODE_AXES)):
            table = getattr(self, key)
            want = tuple(len(getattr(self, axis)) for axis in axes)
            if table.shape != want:
                raise ProfileError(
                    f"profile {self.name}: {key} has shape {table.shape}, its axes say {want}"
                )
            if np.any(table <= 0):
                raise ProfileError(
                    f"profile {self.name}: {key} has a latency of {table.min()} ms; "
                    "every step must take time"
                )
        if self.tp < 1 or self.kv_capacity_tokens < 0 or self.kv_bytes_per_token < 0:
            raise ProfileError(
                f"profile {self.name}: tp {self.tp} must be at least 1; kv_capacity_tokens "
                f"{self.kv_capacity_tokens} and kv_bytes_per_token {self.kv_bytes_per_token} "
                "must not be negative"
            )

    @property
    def fits(self) -> bool:
        """Whether the weights leave room for any KV cache at all."""
        return self.kv_capacity_tokens > 0

    @property
    def model_kv_bytes_per_token(self) -> int:
        """KV bytes of one token over all shards: what a prefill to decode transfer moves."""
        return self.kv_bytes_per_token * self.tp

    @staticmethod
    def load(name_or_path: str | Path) -> WorkerProfile:
        """Read a profile by the name of a shipped one, or by the path of an `.npz` file."""
        return _load(str(_find(name_or_path)))

    def save(self, path: str | Path) -> None:
        """Write the profile as a compressed `.npz` in the format of docs/profiles.md."""
        meta = {
            "model": self.model,
            "system": self.system,
            "tp": self.tp,
            "backend": self.backend,
            "kv_size_per_token_bytes": self.kv_bytes_per_token,
            "tdp_W": self.tdp_w_per_gpu,
            "attribution": self.source,
        }
        arrays = {key: getattr(self, name) for name, key in _ARRAYS.items()}
        arrays["kv_capacity_tokens"] = np.array([self.kv_capacity_tokens])
        arrays["meta"] = np.array(json.dumps(meta))
        # An open file, because numpy appends ".npz" to a bare path and would write elsewhere.
        with Path(path).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def prefill_step_ms(
        self, batch: float, total_new_tokens: float, prefix_tokens: float = 0.0
    ) -> float:
        """Time of one prefill step over `batch` requests with `total_new_tokens` between them.

        `prefix_tokens` is the mean number of tokens in front that need no prefill. Outside the grid
        the edge is used, except that steps longer than the last point grow in proportion.
        """
        requests = min(batch, float(self.prefill_batch[-1]))
        self._warn_outside("prefill_new_tokens", total_new_tokens / requests)
        self._warn_outside("prefill_prefix_tokens", prefix_tokens)
        record, table = self._surface
        seconds = surface.prefill_step_s(
            record[0], table, float(batch), float(total_new_tokens), float(prefix_tokens)
        )
        return 1e3 * float(seconds)

    def decode_step_ms(self, batch: float, context_tokens: float) -> float:
        """Time of one decode iteration of `batch` requests with this mean context."""
        self._warn_outside("decode_batch", batch)
        self._warn_outside("decode_context_tokens", context_tokens)
        record, table = self._surface
        lower = int(batch)
        share = batch - lower  # planners ask for mean batches, which need not be whole
        seconds = (1.0 - share) * surface.decode_step_s(
            record[0], table, lower, float(context_tokens)
        )
        if share > 0.0:
            seconds += share * surface.decode_step_s(
                record[0], table, lower + 1, float(context_tokens)
            )
        return 1e3 * float(seconds)

    @cached_property
    def _surface(self) -> surface.Surface:
        return surface.pack(self, int(self.decode_batch[-1]), 1.0)

    def _warn_outside(self, axis_name: str, value: float) -> None:
        axis: Floats = getattr(self, axis_name)
        if not axis[0] <= value <= axis[-1]:
            warnings.warn(
                f"profile {self.name}: {axis_name} {value:g} is outside the grid "
                f"{axis[0]:g}..{axis[-1]:g}; its edge is used",
                ProfileRangeWarning,
                stacklevel=3,
            )


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(sorted(path.stem for path in PROFILE_DIR.glob("*.npz")))


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".npz":
        if path.is_file():
            return path
        raise ProfileError(f"profile {path}: no such file")
    shipped = PROFILE_DIR / f"{name_or_path}.npz"
    if path.name == str(name_or_path) and shipped.is_file():
        return shipped
    close = difflib.get_close_matches(str(name_or_path), shipped_profiles(), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise ProfileError(
        f"unknown profile {str(name_or_path)!r}{hint} Give the path of an .npz file, or a name "
        "that hrl-planner profile list shows"
    )


@lru_cache(maxsize=256)
def _load_version(path: str, _mtime_ns: int) -> WorkerProfile:
    try:
        with np.load(path, allow_pickle=False) as file:
            return _from_arrays(Path(path), {key: file[key] for key in file.files})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ProfileError(f"profile {path}: not a readable .npz file ({error})") from error


def _load(path: str) -> WorkerProfile:
    # Keyed on the time of change too: a profile rebuilt in place must not be served stale.
    return _load_version(path, Path(path).stat().st_mtime_ns)


def _from_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> WorkerProfile:
    missing = sorted({*_ARRAYS.values(), "kv_capacity_tokens", "meta"} - arrays.keys())
    if missing:
        raise ProfileError(f"profile {path}: arrays missing: {', '.join(missing)}")
    try:
        meta = json.loads(str(arrays["meta"]))
        backend = " ".join(str(meta[key]) for key in ("backend", "backend_version") if key in meta)
        return WorkerProfile(
            name=path.stem,
            model=str(meta["model"]),
            system=str(meta["system"]),
            tp=int(meta["tp"]),
            backend=backend,
            # A builder writes -1 where the weights do not fit; here that is no capacity.
            kv_capacity_tokens=max(0, int(arrays["kv_capacity_tokens"].ravel()[0])),
            kv_bytes_per_token=int(meta.get("kv_size_per_token_bytes") or 0),
            tdp_w_per_gpu=float(meta.get("tdp_W") or 0.0),
            source=str(meta.get("attribution", "")),
            **{name: arrays[key] for name, key in _ARRAYS.items()},
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ProfileError(f"profile {path}: bad meta or array ({error!r})") from error
