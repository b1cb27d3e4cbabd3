"""Schemas of manifests: Kubernetes' own in several versions, and those of the custom resources that are used."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import SchemaNotFoundError, ValidationError, utils

CRDS = Path(__file__).parent / "crds"
utils.schema_contents = cache(utils.schema_contents)  # it would read two megabytes for each object


def schema_problems(objects: list[dict[str, Any]], version: str) -> list[str]:
    """What a strict API server of this version would refuse; an unknown kind or field is refused too."""
    problems = []
    for one in objects:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except SchemaNotFoundError:
            problems += _custom(one)
        except ValidationError as error:
            problems.append(f"{_name(one)}: {'.'.join(map(str, error.path))}: {error.message}")
    return problems


def _custom(one: dict[str, Any]) -> list[str]:
    group, _, version = one["apiVersion"].partition("/")
    schema = _schemas().get((group, version, one["kind"]))
    if schema is None:
        return [f"{_name(one)}: no schema is known of {one['apiVersion']} {one['kind']}"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(one)
    return [f"{_name(one)}: {error.json_path}: {error.message}" for error in errors]


@cache
def _schemas() -> dict[tuple[str, str, str], dict[str, Any]]:
    found = {}
    for path in CRDS.glob("*.json"):
        crd = json.loads(path.read_text(encoding="utf-8"))
        for version, schema in crd["versions"].items():
            whole = {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}, **schema["properties"]}
            found[crd["group"], version, crd["kind"]] = _closed(schema | {"properties": whole})
    return found


def _closed(schema: Any) -> Any:
    """The schema in which fields that it does not name are errors, as a strict server has it."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items() if name != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if closed.pop("nullable", False) and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    return closed


def _name(one: dict[str, Any]) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"
