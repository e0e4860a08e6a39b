"""Profiles from the raw data of Dynamo's profiler.

Dynamo's profiler writes, per worker, prefill time by prompt length and decode time by (share of
the KV cache in use, context length), as two `.npz` files in folders of their own or as two JSON
files that its ConfigMaps carry. Our surfaces have axes that format lacks; `ASSUMPTIONS` says what
stands in for the missing measurements, and travels with the profile as part of its source line.

Prefill: with T(n) the measured time of one prompt of n tokens,
- behind a cached prefix of p tokens, n new tokens take T(p + n) - T(p) plus the cost of a step;
- a batch of b prompts of n tokens takes the lesser of b * T(n) and T(b * n). Both are upper bounds:
  the first pays the cost of a step b times, the second lets every prompt attend to all others.
Decode: points share context lengths but not batch sizes, so each context is a curve over its batch
sizes, resampled at the batch sizes of all.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hrl_planner.errors import ProfileError
from hrl_planner.profile import Floats, WorkerProfile

ASSUMPTIONS = (
    "new tokens behind a cached prefix cost T(prefix + new) - T(prefix) plus the cost of a step",
    "a batch of b prompts of n tokens costs the lesser of b * T(n) and T(b * n)",
    "beyond the measured lengths and batches, times go on with their last slope",
)

_BATCHES = (1.0, 2.0, 4.0, 8.0)
_PREFIXES = (0.0, 1024.0, 4096.0, 16384.0)
_FILES = {
    "prefill": ("selected_prefill_interpolation/raw_data.npz", "prefill_raw_data.json"),
    "decode": ("selected_decode_interpolation/raw_data.npz", "decode_raw_data.json"),
}
_FIELDS = {
    "prefill": ("prefill_isl", "prefill_ttft"),
    "decode": ("x_kv_usage", "y_context_length", "z_itl", "max_kv_tokens"),
}


def import_dynamo(
    directory: str | Path,
    *,
    name: str,
    model: str,
    system: str = "unknown",
    tp: int = 1,
    kv_bytes_per_token: int = 0,
    tdp_w_per_gpu: float = 0.0,
) -> WorkerProfile:
    """Read a result directory of Dynamo's profiler.

    Args:
        directory: where the two raw data files are.
        name: name of the profile.
        model: the model that was profiled; the raw data do not say.
        system: the accelerator, for people.
        tp: GPUs one worker shards the model over.
        kv_bytes_per_token: per GPU; 0 leaves KV transfers without a size.
        tdp_w_per_gpu: per GPU; 0 leaves power unknown.

    Raises:
        ProfileError: naming the file and the array, when something is missing or makes no sense.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ProfileError(f"{folder}: not a directory")
    prefill_file, prefill = _read(folder, "prefill")
    decode_file, decode = _read(folder, "decode")
    lengths, times = _curve(
        prefill["prefill_isl"], prefill["prefill_ttft"], f"{prefill_file}: prefill_isl"
    )
    capacity = float(decode["max_kv_tokens"].ravel()[0])
    if not capacity >= 1:
        raise ProfileError(f"{decode_file}: max_kv_tokens is {capacity:g}, must be at least 1")
    contexts, batches, decode_ms = _decode_surface(decode, capacity, decode_file)
    prefixes = np.array([p for p in _PREFIXES if p < lengths[-1]])
    return WorkerProfile(
        name=name,
        model=model,
        system=system,
        tp=tp,
        backend="dynamo profiler",
        prefill_batch=np.array(_BATCHES),
        prefill_new_tokens=lengths,
        prefill_prefix_tokens=prefixes,
        prefill_ms=_prefill_surface(lengths, times, prefixes),
        decode_batch=batches,
        decode_context_tokens=contexts,
        decode_ms=decode_ms,
        kv_capacity_tokens=int(capacity),
        kv_bytes_per_token=kv_bytes_per_token,
        tdp_w_per_gpu=tdp_w_per_gpu,
        source=f"Dynamo profiler results in {folder.name}; assumed: {'; '.join(ASSUMPTIONS)}",
    )


def _read(folder: Path, kind: str) -> tuple[Path, dict[str, Floats]]:
    """Return the file found and its needed arrays as float64."""
    for relative in _FILES[kind]:
        path = folder / relative
        if not path.is_file():
            continue
        try:
            raw: dict[str, Any]
            if path.suffix == ".json":
                raw = json.loads(path.read_text(encoding="utf-8"))
            else:
                with np.load(path, allow_pickle=False) as file:
                    raw = {key: file[key] for key in file.files}
            arrays = {field: np.asarray(raw[field], np.float64) for field in _FIELDS[kind]}
        except KeyError as error:
            raise ProfileError(f"{path}: {error.args[0]} is missing") from error
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ProfileError(f"{path}: not readable as profiler data ({error})") from error
        _check(path, arrays)
        return path, arrays
    raise ProfileError(f"{folder}: found neither {' nor '.join(_FILES[kind])}")


def _check(path: Path, arrays: dict[str, Floats]) -> None:
    points = {field: a for field, a in arrays.items() if field != "max_kv_tokens"}
    for field, values in arrays.items():
        if values.size == 0 or not np.all(np.isfinite(values)) or np.any(values <= 0):
            raise ProfileError(f"{path}: {field} must hold positive, finite numbers")
    if len({values.shape for values in points.values()}) != 1:
        shapes = ", ".join(f"{field} {values.size}" for field, values in points.items())
        raise ProfileError(f"{path}: arrays differ in length: {shapes}")


def _curve(x: ArrayLike, y: ArrayLike, where: str, at_least: int = 2) -> tuple[Floats, Floats]:
    """Sort the points by x and average those that share one."""
    points, inverse = np.unique(np.asarray(x, np.float64), return_inverse=True)
    if points.size < at_least:
        raise ProfileError(f"{where} has {points.size} different values, needs {at_least}")
    means = np.bincount(inverse, weights=np.asarray(y, np.float64)) / np.bincount(inverse)
    return points, means


def _extended(x: ArrayLike, points: Floats, values: Floats) -> Floats:
    """Interpolate, and go on with the last slope (never downwards) behind the last point."""
    x = np.asarray(x, np.float64)
    result: Floats = np.interp(x, points, values)
    if points.size > 1:
        slope = max(0.0, (values[-1] - values[-2]) / (points[-1] - points[-2]))
        result += slope * np.maximum(0.0, x - points[-1])
    return result


def _prefill_surface(lengths: Floats, times: Floats, prefixes: Floats) -> Floats:
    slope = (times[1] - times[0]) / (lengths[1] - lengths[0])
    step_cost = min(max(0.0, times[0] - slope * lengths[0]), times[0])
    # Fix the curve at the origin, so that short prefixes are not costed at the first point's time.
    points = np.concatenate([[0.0], lengths])
    values = np.concatenate([[step_cost], times])
    batch = np.array(_BATCHES)[:, None, None]
    new = lengths[None, :, None]
    prefix = prefixes[None, None, :]

    def behind_prefix(tokens: Floats) -> Floats:
        full = _extended(prefix + tokens, points, values)
        alone = _extended(tokens, points, values)
        rest = step_cost + full - _extended(prefix, points, values)
        return np.asarray(np.maximum(alone, rest), np.float64)

    surface: Floats = np.minimum(batch * behind_prefix(new), behind_prefix(batch * new))
    return surface


def _decode_surface(
    decode: dict[str, Floats], capacity: float, file: Path
) -> tuple[Floats, Floats, Floats]:
    """Return context axis, batch axis and times resampled on them."""
    context = decode["y_context_length"].ravel()
    batch = decode["x_kv_usage"].ravel() * capacity / context
    itl = decode["z_itl"].ravel()
    contexts = np.unique(context)
    # Shares of the cache divide back to whole batches only up to rounding.
    batches = np.unique(np.maximum(1.0, np.round(batch)))
    columns = []
    for value in contexts:
        chosen = context == value
        rounded = np.maximum(1.0, np.round(batch[chosen]))
        points, times = _curve(rounded, itl[chosen], f"{file}: x_kv_usage", at_least=1)
        columns.append(_extended(batches, points, times))
    return contexts, batches, np.stack(columns, axis=1)
