"""JSON schemas of pydantic made structural: what API servers from 1.20 on accept in a definition.

Structural means: every field has one type, no references, null is `nullable` and not a type,
bounds are OpenAPI 3.0's (`exclusiveMinimum` is a flag beside `minimum`), and defaults stand where
the field is. A default that is an object becomes `{}`: the server then fills in the defaults of
its fields.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_KEPT = (
    "description", "enum", "format", "maximum", "maxItems", "maxLength", "minimum", "minItems",
    "minLength", "pattern", "required", "type",
)  # fmt: skip


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(schema: Schema, defs: dict[str, Schema]) -> Schema:
    if "$ref" in schema:
        target = defs[schema["$ref"].rpartition("/")[2]]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    if "anyOf" in schema:
        return _nullable(schema, defs)
    result = {key: schema[key] for key in _KEPT if key in schema}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in schema:
            result |= {bound: schema[exclusive], exclusive: True}
    if "items" in schema:
        result["items"] = _convert(schema["items"], defs)
    if "properties" in schema:
        result["properties"] = {
            name: _convert(field, defs) for name, field in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(schema["additionalProperties"], defs)
    default = schema.get("default")
    if default is not None:
        result["default"] = {} if isinstance(default, dict) else default
    return result


def _nullable(schema: Schema, defs: dict[str, Schema]) -> Schema:
    types = [option for option in schema["anyOf"] if option.get("type") != "null"]
    if len(types) != 1 or len(types) == len(schema["anyOf"]):
        raise TypeError(f"a field of several types has no structural schema: {schema}")
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**_convert({**types[0], **rest}, defs), "nullable": True}
