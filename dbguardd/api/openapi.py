"""The OpenAPI 3.1 description, generated from the route table and the dataclasses of the wire."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from inspect import getdoc
from typing import TYPE_CHECKING, Any

from dbguardd import __version__
from dbguardd.api.strict import Param
from dbguardd.errors import OUTCOMES
from dbguardd.wire import API_VERSION

if TYPE_CHECKING:
    from dbguardd.api.routes import Route

Json = dict[str, Any]
_SIMPLE: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def describe(routes: Iterable[Route]) -> Json:
    """Return the complete document."""
    schemas: Json = {"Problem": _problem()}
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dbguard",
            "version": f"{API_VERSION} (dbguard {__version__})",
            "summary": "Backups of databases, proven by restores; over a Unix socket, roles by the peer's identity.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://dbguard/", "description": "any host name: the socket is /run/dbguard/api.sock"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(route: Route, schemas: Json) -> Json:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    parameters += [_parameter(param) for param in route.query]
    if route.verb:
        key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}
        parameters.append({**key, "description": "the same key from the same user gives the same job"})
    operation: Json = {
        "operationId": f"{route.method.lower()}_{route.path.removeprefix('/v1/')}".translate(_IDENTIFIER),
        "summary": _first_line(route.body if route.body and route.verb else route.handler),
        "description": f"Needs the role {route.role}" + (", or admin for what destroys." if route.stricter else "."),
        "x-role": str(route.role),
        "parameters": parameters,
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        content = {"application/json": {"schema": _component(route.body, schemas, asked=True)}}
        needed = any(member.default is MISSING for member in fields(route.body))
        operation["requestBody"] = {"required": needed, "content": content}
    return operation


_IDENTIFIER = str.maketrans({"/": "_", "-": "_", ".": "_", "{": None, "}": None})


def _responses(route: Route, schemas: Json) -> Json:
    content: Json = {"application/json": {"schema": _answer(route, schemas)}}
    if route.path == "/v1/jobs/{id}/answer":
        content = {"application/octet-stream": {"schema": {"type": "string"}}}
    if route.path == "/v1/events":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    ended = "the job has ended" if route.verb else "done"
    responses: Json = {"200": {"description": ended, "content": content}}
    if route.verb:
        place = {"Location": {"description": "where the job is", "schema": {"type": "string"}}}
        responses["202"] = {"description": "the job is queued or runs", "headers": place, "content": content}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses["default"] = {"description": "what went wrong, and what to do", "content": problem}
    return responses


def _answer(route: Route, schemas: Json) -> Json:
    if not route.answer:
        return {"type": "object"}
    if isinstance(route.members, type):
        return _schema(route.members, schemas)
    members = {name: _schema(kind, schemas) for name, kind in route.members.items()}
    constant = {"type": "string", "const": f"dbguard.{route.answer}/1"}
    return {"type": "object", "required": ["schema", *members], "properties": {"schema": constant, **members}}


def _parameter(param: Param) -> Json:
    schema: Json = {"type": _SIMPLE[param.kind]}
    for name, value in (("minimum", param.low), ("maximum", param.high), ("default", param.default)):
        if value is not None:
            schema[name] = value
    if param.choices:
        schema["enum"] = list(param.choices)
    return {"name": param.name, "in": "query", "required": False, "description": param.help, "schema": schema}


def _schema(kind: Any, schemas: Json) -> Json:
    """Return the schema of a type; dataclasses become components."""
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_schema(option, schemas) for option in typing.get_args(kind)]}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [str(value) for value in kind]}
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], schemas)}
    if is_dataclass(kind) and isinstance(kind, type):
        return _component(kind, schemas, asked=False)
    return {"type": _SIMPLE.get(kind, "object")}


def _component(kind: type, schemas: Json, *, asked: bool) -> Json:
    """Return a reference to the schema of a dataclass: a request (`asked`), or an answer, which has all members."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    if kind.__name__ in schemas:
        return reference
    component: Json = {"type": "object", "description": _first_line(kind)}
    schemas[kind.__name__] = component
    hints = typing.get_type_hints(kind)
    properties: Json = {}
    for member in fields(kind):
        properties[member.name] = _schema(hints[member.name], schemas)
        if "help" in member.metadata:
            properties[member.name]["description"] = member.metadata["help"]
    required = [
        member.name
        for member in fields(kind)
        if not asked or (member.default is MISSING and member.default_factory is MISSING)
    ]
    component.update(required=required, properties=properties, additionalProperties=not asked)
    return reference


def _problem() -> Json:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "RFC 9457; facts of the error are further members",
        "required": ["type", "title", "status", "code", "message", "instance"],
        "properties": {
            **{name: text for name in ("type", "title", "message", "detail", "instance")},
            "code": {"type": "string", "enum": sorted(OUTCOMES)},
            "status": {"type": "integer"},
            "exit_code": {"type": "integer"},
            "retryable": {"type": "boolean"},
            "hints": {"type": "array", "items": text},
        },
    }


def _first_line(documented: object) -> str:
    return (getdoc(documented) or "").split("\n")[0]
