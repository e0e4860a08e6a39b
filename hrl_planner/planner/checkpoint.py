"""A trained planner on disk: a folder that is read without running anything it contains.

    manifest.yaml            what it is: networks' sizes, feature schema, ranges, spec, origin
    allocator.safetensors    weights of the global allocator and its feature normaliser
    scaler.safetensors       the same of the local scaler; absent where the rule scales
    README.md                model card, for people

Weights are safetensors: names, shapes and numbers. Loading needs numpy alone and refuses what does
not fit: an unknown format, a feature schema other than this version's, weights that are missing,
of another shape or not finite.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS, schema_hash
from hrl_planner.errors import CheckpointError
from hrl_planner.planner.allocator import N_TERMS
from hrl_planner.planner.network import NetShape, Network, pack
from hrl_planner.planner.scaler import CHANGES

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parents[1] / "checkpoints"
_MANIFEST, _CARD = "manifest.yaml", "README.md"
ALLOCATOR_FILE, SCALER_FILE = _WEIGHTS = ("allocator.safetensors", "scaler.safetensors")
_DTYPES = ("F16", "F32", "F64")

Tensors = dict[str, NDArray[np.float32]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkInfo(_Model):
    """Sizes of one network, see `NetShape`."""

    class_hidden: int = Field(ge=1, le=4096)
    hidden: int = Field(ge=1, le=4096)
    attention: bool
    pooled: bool
    outputs: int = Field(ge=1, le=4096)
    scorer: bool = False

    @property
    def shape(self) -> NetShape:
        """The sizes as the forward pass takes them."""
        return NetShape(
            self.class_hidden,
            self.hidden,
            int(self.attention),
            int(self.pooled),
            self.outputs,
            int(self.scorer),
        )

    @classmethod
    def of(cls, shape: NetShape) -> NetworkInfo:
        """Describe a network."""
        return cls(
            class_hidden=shape.class_hidden,
            hidden=shape.hidden,
            attention=bool(shape.attention),
            pooled=bool(shape.pooled),
            outputs=shape.outputs,
            scorer=bool(shape.scorer),
        )


class SchemaInfo(_Model):
    """The features a checkpoint reads, in order."""

    hash: str
    pool_columns: tuple[str, ...]
    class_columns: tuple[str, ...]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lowest value is above the highest")
    return bounds


Bounds = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ordered)]


class Ranges(_Model):
    """Lowest and highest value of every feature that training saw."""

    pools: dict[str, Bounds]
    classes: dict[str, Bounds]


class RewardNormaliser(_Model):
    """Running statistics of the discounted return that rewards were divided by in training."""

    mean: float
    var: float
    count: float


class Manifest(_Model):
    """Everything about a checkpoint but its weights."""

    format_version: int
    name: str
    head: Literal["residual", "moves", "terms", "flat"]
    moves: int = Field(0, ge=0, le=64, description="most moves of a decision, of head moves")
    prior: str = Field(description="policy the allocator corrects, as the registry spells it")
    allocator: NetworkInfo
    scaler: NetworkInfo | None = None
    feature_schema: SchemaInfo
    ranges: Ranges
    reward_normaliser: RewardNormaliser | None = None
    spec: dict[str, Any] = Field(description="the cluster it was trained on")
    training: dict[str, Any] = Field(default_factory=dict, description="config, seed, steps, time")
    metrics: dict[str, float] = Field(default_factory=dict, description="at the end of training")
    git_revision: str = "unknown"
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if (self.head == "moves") != (self.moves > 0) or (self.moves > 0) != self.allocator.scorer:
            raise ValueError(
                f"head {self.head} does not go with moves: {self.moves} and "
                f"allocator.scorer: {self.allocator.scorer}"
            )
        if self.head == "terms" and self.allocator.outputs not in (N_TERMS - 1, N_TERMS):
            raise ValueError(
                f"head terms needs allocator.outputs: {N_TERMS - 1} or {N_TERMS}, not "
                f"{self.allocator.outputs}"
            )
        if self.scaler is not None and self.scaler.outputs != len(CHANGES):
            raise ValueError(
                f"scaler.outputs: {self.scaler.outputs}, but scalers have {len(CHANGES)} actions"
            )
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its folder.
        manifest: what it is.
        allocator: the global network.
        scaler: the local network; None where the rule scales.
    """

    path: Path
    manifest: Manifest
    allocator: Network
    scaler: Network | None


def current_schema() -> SchemaInfo:
    """Return the feature schema of this version."""
    return SchemaInfo(hash=schema_hash(), pool_columns=POOL_COLUMNS, class_columns=CLASS_COLUMNS)


def shipped(spec_name: str) -> Path:
    """Return the folder of the checkpoint that ships for a spec.

    Raises:
        CheckpointError: there is none.
    """
    path = SHIPPED / spec_name
    if not (path / _MANIFEST).is_file():
        raise CheckpointError(
            f"no checkpoint ships for spec {spec_name!r}; train one with `hrl-planner train` "
            "and give learned:path=FOLDER"
        )
    return path


def find(text: str | Path) -> Path:
    """Return the folder a person means: a path, or the name of the spec one ships for.

    Raises:
        CheckpointError: a name by which none ships.
    """
    folder = Path(text)
    if folder.exists() or len(folder.parts) != 1:
        return folder
    return shipped(str(text))


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        CheckpointError: naming the file, the field and the value.
    """
    path = folder / _MANIFEST
    data = read_mapping(path, "checkpoint manifest", CheckpointError)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path}: format_version is {version!r}; this version reads {FORMAT_VERSION}"
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(describe(error, f"checkpoint {path}")) from error
    _check_schema(path, manifest.feature_schema)
    _check_ranges(path, manifest.ranges)
    return manifest


def load(folder: str | Path) -> Checkpoint:
    """Load a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: it is missing, damaged or does not fit this version.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    allocator = _network(path / ALLOCATOR_FILE, manifest.allocator)
    scaler = None
    if manifest.scaler is not None:
        scaler = _network(path / SCALER_FILE, manifest.scaler)
    return Checkpoint(path, manifest, allocator, scaler)


def digest(folder: str | Path) -> str:
    """Return what tells two checkpoints apart: a hash of manifest and weights, 16 hex digits."""
    found = hashlib.sha256()
    for name in (_MANIFEST, *_WEIGHTS):
        path = Path(folder) / name
        found.update(f"{name}\n".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()[:16]


def save(
    folder: Path,
    manifest: Manifest,
    allocator: Tensors,
    scaler: Tensors | None,
    card: str,
) -> None:
    """Write a checkpoint whole or not at all, in place of what was there.

    Args:
        folder: where to.
        manifest: what it is.
        allocator: tensors by the names of `NetShape.tensors`.
        scaler: the same of the local network.
        card: model card in Markdown.

    Raises:
        CheckpointError: what was there is no checkpoint; it stays.
    """
    check_replaceable(folder)
    pack(allocator, manifest.allocator.shape)
    if manifest.scaler is not None and scaler is not None:
        pack(scaler, manifest.scaler.shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh.chmod(0o755)
    save_file(_contiguous(allocator), fresh / ALLOCATOR_FILE)
    if scaler is not None:
        save_file(_contiguous(scaler), fresh / SCALER_FILE)
    for weights in fresh.glob("*.safetensors"):
        weights.chmod(0o644)  # written for their owner alone, who is not who plans in a pod
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, width=100)
    (fresh / _MANIFEST).write_text(text, encoding="utf-8")
    (fresh / _CARD).write_text(card, encoding="utf-8")
    if not folder.exists():
        fresh.rename(folder)
        return
    # Put aside first: a kill must not leave the folder half removed.
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old)


def check_replaceable(folder: Path) -> None:
    """Refuse a path where something else than a checkpoint would be lost.

    Raises:
        CheckpointError: it is a file, or a folder with anything in it but no manifest.
    """
    if folder.is_dir() and ((folder / _MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise CheckpointError(
            f"{folder}: is there and no checkpoint; nothing is replaced, name another folder"
        )


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def _check_schema(path: Path, found: SchemaInfo) -> None:
    expected = current_schema()
    if found.hash == expected.hash:
        return
    have = {*found.pool_columns, *found.class_columns}
    want = {*expected.pool_columns, *expected.class_columns}
    missing, extra = sorted(want - have), sorted(have - want)
    raise CheckpointError(
        f"checkpoint {path}: feature_schema.hash is {found.hash}, this version's is "
        f"{expected.hash} (features it lacks: {', '.join(missing) or 'none'}; features it has "
        f"too many: {', '.join(extra) or 'none'}); train it anew"
    )


def _check_ranges(path: Path, found: Ranges) -> None:
    """Refuse ranges of other features than those a network is shown: each is looked up by name."""
    for field, have, want in (
        ("pools", found.pools, POOL_COLUMNS),
        ("classes", found.classes, CLASS_COLUMNS),
    ):
        missing, extra = sorted({*want} - {*have}), sorted({*have} - {*want})
        if missing or extra:
            raise CheckpointError(
                f"checkpoint {path}: ranges.{field}: features missing: "
                f"{', '.join(missing) or 'none'}; features it has too many: "
                f"{', '.join(extra) or 'none'}"
            )


def read_tensors(path: Path) -> Tensors:
    """Read a file of weights.

    Raises:
        CheckpointError: it is missing, damaged, or holds numbers that are no weights.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors: Tensors = {name: _tensor(path, file, name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error}") from error
    for name, value in tensors.items():
        # What is used is float32: a finite float64 may not be one.
        if not np.all(np.abs(value) <= np.finfo(np.float32).max):
            raise CheckpointError(f"checkpoint {path}: tensor {name} holds NaN or infinity")
    return tensors


def _tensor(path: Path, file: Any, name: str) -> NDArray[np.float32]:
    # numpy has no name for some types, and others, of which weights are not made, it would take.
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"checkpoint {path}: tensor {name} is {dtype}; weights are {', '.join(_DTYPES)}"
        )
    weights: NDArray[np.float32] = file.get_tensor(name)
    return weights


def _network(path: Path, info: NetworkInfo) -> Network:
    tensors = read_tensors(path)
    try:
        return Network(pack(tensors, info.shape), info.shape)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
