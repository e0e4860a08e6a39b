"""Spec files: where they are found, how they are read, and how their errors are put into words.

What a valid spec is, `hrl_planner.spec` says; this module knows YAML, paths and messages only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hrl_planner.errors import HrlPlannerError, SpecError

_HERE = Path(__file__).parent
# Installed packages carry the specs inside; a source tree keeps its one copy under experiments/.
SPEC_DIRS = (_HERE / "specs", _HERE.parent / "experiments" / "specs")


def shipped_specs() -> tuple[str, ...]:
    """Names of the specs that come with the package."""
    return tuple(sorted({p.stem for d in SPEC_DIRS for p in d.glob("*.yaml")}))


def find_spec(path_or_name: str | Path) -> Path:
    """Return the file a spec's path or name stands for."""
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise SpecError(f"spec {path}: no such file")
    for directory in SPEC_DIRS:
        shipped = directory / f"{path_or_name}.yaml"
        if path.name == str(path_or_name) and shipped.is_file():
            return shipped
    raise SpecError(
        f"unknown spec {str(path_or_name)!r}; give the path of a .yaml file or one of: "
        + ", ".join(shipped_specs())
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # What `<<` brings in may be given again: that is what it is for.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for i, (key_node, key) in enumerate(zip(own, keys, strict=True)):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_mapping(
    path: Path, what: str = "spec", kind: type[HrlPlannerError] = SpecError
) -> dict[str, Any]:
    """Return the plain data of a YAML file that holds one mapping.

    Args:
        path: the file.
        what: what it is, for messages.
        kind: error to raise.

    Raises:
        HrlPlannerError: of that kind, with file, line and reason.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise kind(f"{path}{at}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise kind(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise kind(f"{path}: a {what} is a mapping of fields, this is {type(data).__name__}")
    return data


def read_spec_file(path: Path) -> dict[str, Any]:
    """Return the plain data of a spec file, profile paths resolved against its directory."""
    data = read_mapping(path)
    _resolve_profiles(data, path.parent)
    return data


def _resolve_profiles(data: dict[str, Any], base: Path) -> None:
    """Make profile paths relative to the file that names them, not to the caller's directory."""
    pools = data.get("pools")
    for pool in pools if isinstance(pools, list) else ():
        if isinstance(pool, dict) and str(pool.get("profile", "")).endswith(".npz"):
            pool["profile"] = str(base / pool["profile"])


def describe(error: ValidationError, where: str) -> str:
    """Return one line per thing that is wrong: place, reason, value."""
    lines = []
    for item in error.errors():
        at = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]
        ).lstrip(".")
        message = item["msg"].removeprefix("Value error, ")
        value = item["input"]
        # A whole mapping as the offending value would bury the message; its field names do.
        got = "" if isinstance(value, dict | BaseModel) else f", got {value!r:.60}"
        lines.append(f"{at}: {message}{got}" if at else message)
    return "\n".join(f"{where}: {line}" for line in lines)
