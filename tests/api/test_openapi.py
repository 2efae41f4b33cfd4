"""The description says what the table and the wire say, and is an OpenAPI 3.1 document."""

import re
from dataclasses import fields

import pytest

from dbguardd import requests, wire
from dbguardd.api.routes import ROUTES
from dbguardd.errors import OUTCOMES

KEYWORDS = {"type", "properties", "required", "additionalProperties", "description", "items", "anyOf", "$ref", "enum"}
KEYWORDS |= {"const", "default", "minimum", "maximum", "maxLength"}
TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}


@pytest.fixture
def document(api):
    return api.ask("GET", "/v1/openapi.json").content


def schemas(node):
    """Every schema in the document, wherever one may stand."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("schema", "items"):
                yield value
            elif key in ("properties", "schemas"):
                yield from value.values()
            elif key == "anyOf":
                yield from value
            yield from schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from schemas(value)


def test_every_route_stands_in_it(document):
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert operation["x-role"] == route.role
        assert operation["summary"].endswith(".")
        assert {"200", "default"} <= operation["responses"].keys()
        assert all("description" in response for response in operation["responses"].values())
        named = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", route.path)
        assert [p["name"] for p in operation["parameters"] if p["in"] == "query"] == [p.name for p in route.query]
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_every_request_of_the_wire_has_its_schema(document):
    for verb, kind in requests.REQUESTS.items():
        operation = document["paths"][f"/v1/jobs/{verb}"]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        assert list(schema["properties"]) == [member.name for member in fields(kind)]
        assert schema["additionalProperties"] is False
        assert schema["required"] == {"sweep": ["storage"], "query": ["database", "sql"]}.get(verb, ["database"])
        assert all("description" in schema["properties"][m.name] for m in fields(kind) if "help" in m.metadata)


def test_every_schema_is_one_and_every_reference_leads_somewhere(document):
    assert document["openapi"] == "3.1.0"
    count = 0
    for schema in schemas(document):
        count += 1
        assert schema.keys() <= KEYWORDS, schema
        assert schema.get("type", "object") in TYPES
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys()
        if "$ref" in schema:
            assert schema["$ref"].rsplit("/", 1)[1] in document["components"]["schemas"]
    assert count > 100
    for kind in (wire.Status, wire.BackupRow, wire.JobRow, wire.Event, wire.DatabaseStatus):
        assert kind.__name__ in document["components"]["schemas"]


def test_every_code_can_come(document):
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] == sorted(OUTCOMES)
