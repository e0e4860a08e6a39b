"""A checkpoint comes back as it was written, or says in one line what is wrong with it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.errors import CheckpointError
from hrl_planner.planner.checkpoint import load, shipped
from hrl_planner.planner.network import pack
from hrl_planner.spec import ClusterSpec
from tests.networks import ALLOCATOR, SCALER, tensors, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_what_is_written_is_read(folder: Path) -> None:
    checkpoint = load(folder)
    np.testing.assert_array_equal(checkpoint.allocator.net, pack(tensors(ALLOCATOR, 1), ALLOCATOR))
    assert checkpoint.scaler is not None
    np.testing.assert_array_equal(checkpoint.scaler.net, pack(tensors(SCALER, 2), SCALER))
    assert checkpoint.allocator.shape == ALLOCATOR
    assert not list(folder.parent.glob(".checkpoint-*"))
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_writing_again_replaces_the_whole(folder: Path) -> None:
    write_checkpoint(folder, allocator=tensors(ALLOCATOR, 9))
    np.testing.assert_array_equal(
        load(folder).allocator.net, pack(tensors(ALLOCATOR, 9), ALLOCATOR)
    )


def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    results, empty, file = tmp_path / "results", tmp_path / "empty", tmp_path / "file"
    results.mkdir(), empty.mkdir(), file.touch()
    (results / "config.yaml").write_text("seed: 3")
    for taken in (results, file):
        with pytest.raises(CheckpointError, match="nothing is replaced"):
            write_checkpoint(taken)
    assert (results / "config.yaml").read_text() == "seed: 3" and file.read_bytes() == b""
    assert load(write_checkpoint(empty)).path == empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version is 99; this version reads 1"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"head": "other"}, "head: Input should be 'residual'"),
        ({"prior": None}, "prior: Input should be a valid string"),
    ],
)
def test_a_wrong_manifest_is_refused_by_field(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "manifest.yaml" in str(caught.value)


def test_another_feature_schema_is_refused_and_the_difference_named(folder: Path) -> None:
    path = folder / "manifest.yaml"
    data = yaml.safe_load(path.read_text())
    data["feature_schema"]["hash"] = "0123"
    data["feature_schema"]["pool_columns"][3] = "gpus_of_old"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(
        CheckpointError, match="gpus_per_replica; features it has too many: gpus_of"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("part", "name", "bounds", "message"),
    [
        ("pools", "kv_use", None, "ranges.pools: features missing: kv_use; .* too many: none"),
        ("classes", "planned", None, "ranges.classes: features missing: planned"),
        ("pools", "gpus_of_old", [0.0, 1.0], "missing: none; features .* too many: gpus_of_old"),
        ("pools", "kv_use", [0.0, float("nan")], r"ranges\.pools\.kv_use\[1\]: .* finite"),
        ("pools", "kv_use", [float("-inf"), 1.0], r"ranges\.pools\.kv_use\[0\]: .* finite"),
        ("classes", "planned", [0.5, 0.4], r"ranges\.classes\.planned: the lowest value is above"),
    ],
)
def test_ranges_that_could_not_be_checked_against_are_refused(
    folder: Path, part: str, name: str, bounds: list[float] | None, message: str
) -> None:
    ranges = yaml.safe_load((folder / "manifest.yaml").read_text())["ranges"]
    ranges[part].pop(name, None)
    if bounds is not None:
        ranges[part][name] = bounds
    edit(folder, ranges=ranges)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "manifest.yaml" in str(caught.value)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "allocator.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"allocator\.safetensors: cannot be read"):
        load(folder)


def test_weights_of_another_shape_or_not_finite_are_refused(folder: Path) -> None:
    path = folder / "scaler.safetensors"
    found = load_file(path)
    found["head_1.bias"][0] = np.nan
    save_file(found, path)
    with pytest.raises(CheckpointError, match=r"tensor head_1\.bias holds NaN"):
        load(folder)
    save_file({**found, "head_1.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"head_1\.bias has shape \(3,\)"):
        load(folder)


def test_weights_beyond_single_precision_are_refused(folder: Path) -> None:
    path = folder / "scaler.safetensors"
    wide = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    wide["head_1.bias"][0] = -1e300
    save_file(wide, path)
    with pytest.raises(CheckpointError, match=r"tensor head_1\.bias holds NaN or infinity"):
        load(folder)


def test_a_scaler_of_other_actions_is_refused(folder: Path) -> None:
    path = folder / "manifest.yaml"
    data = yaml.safe_load(path.read_text())
    data["scaler"]["outputs"] = 12
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(CheckpointError, match=r"scaler\.outputs: 12, but scalers have 8"):
        load(folder)


@pytest.mark.parametrize(
    ("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("I64", 8), ("I32", 4), ("BOOL", 1)]
)
def test_weights_of_a_type_that_weights_are_not_made_of_are_refused(
    folder: Path, dtype: str, size: int
) -> None:
    tensor = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"head_1.bias": tensor}).encode()
    body = struct.pack("<Q", len(header)) + header + bytes(size)
    (folder / "scaler.safetensors").write_bytes(body)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"scaler.safetensors: tensor head_1.bias is {dtype}; " in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_are_read(folder: Path, dtype: type[np.floating[Any]]) -> None:
    path = folder / "scaler.safetensors"
    save_file({name: value.astype(dtype) for name, value in load_file(path).items()}, path)
    scaler = load(folder).scaler
    assert scaler is not None
    np.testing.assert_allclose(scaler.net, pack(tensors(SCALER, 2), SCALER), atol=1e-3)


def test_nothing_in_a_checkpoint_is_executed(folder: Path) -> None:
    marker = folder / "ran"
    (folder / "manifest.yaml").write_text(
        f"!!python/object/apply:os.system ['touch {marker}']\n", encoding="utf-8"
    )
    with pytest.raises(CheckpointError):
        load(folder)
    assert not marker.exists()


def test_a_missing_folder_or_spec_is_an_error_of_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoint", "show", str(tmp_path / "none")])
    assert result.exit_code == 2
    with pytest.raises(CheckpointError, match="no checkpoint ships for spec 'nowhere'"):
        shipped("nowhere")


def test_show_prints_what_it_is(folder: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoint", "show", str(folder), "--features"])
    assert result.exit_code == 0, result.output
    for word in ("allocator", "scaler", "lp, residual head", "pool kv_use"):
        assert word in result.output


def test_a_decision_needs_numpy_alone(folder: Path) -> None:
    """Neither a learning library nor an environment, nor a compiler, is imported or needed."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "stable_baselines3", "gymnasium", "numba", "envs"}}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
spec = ClusterSpec.load("small")
policy = make_policy("learned:path={folder}")
policy.reset(PlanContext(spec))
pools = np.ones((len(spec.pools), len(POOL_FIELDS)))
classes = np.ones((len(spec.slo_classes), len(CLASS_FIELDS)))
plan = policy.decide(ClusterObservation(0.0, pools, classes))
print(plan.replicas.tolist(), plan.reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "learned" in done.stdout


def test_the_checkpoint_that_ships_fits_the_spec_it_ships_for() -> None:
    manifest = load(shipped("reference")).manifest
    spec = ClusterSpec.load("reference")
    assert manifest.spec["name"] == spec.name
    assert [pool["name"] for pool in manifest.spec["pools"]] == [pool.name for pool in spec.pools]
    arguments = ["simulate", "--scenario", "steady-no-flap", "--policy", "learned", "--until", "90"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
