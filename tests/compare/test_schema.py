"""result.json: what goes in comes out, and other files are refused in one sentence."""

from __future__ import annotations

import json

import pytest

from compare import schema
from compare.schema import Result, RowInfo, Sample, SchemaError, Settings


def made() -> Result:
    return Result(
        settings=Settings(["ping-pong"], 2, 0.5, 11, "aes-256-gcm"),
        environment={"kernel": "Linux 6.1", "cores": 2},
        rows=[RowInfo("fork", "model", "UNP 30.5", "one child for each")],
        samples=[
            Sample("fork", "ping-pong", 1, 0.5, figures={"cpu": 0.25}, latency_us=[(90, 1000), (4000, 2)]),
            Sample("fork", "ping-pong", 2, 1.5, invalid="wrong byte up, at 7", notes=["é | <b>"]),
        ],
        planned=3,
        elapsed=2.5,
    )


def test_round_trip() -> None:
    assert schema.load(schema.dump(made())) == made()


def test_it_says_what_it_is() -> None:
    content = json.loads(schema.dump(made()))
    assert content["schema"] == {"name": schema.NAME, "version": f"{schema.MAJOR}.{schema.MINOR}"}
    assert content["complete"] is False


def test_a_later_minor_version_is_read() -> None:
    content = json.loads(schema.dump(made()))
    content["schema"]["version"] = f"{schema.MAJOR}.99"
    content["settings"]["new"] = content["samples"][0]["new"] = content["new"] = 1
    assert schema.load(json.dumps(content)) == made()


def test_another_major_version_is_refused() -> None:
    content = json.loads(schema.dump(made()))
    content["schema"]["version"] = f"{schema.MAJOR + 1}.0"
    with pytest.raises(SchemaError, match=rf"expected .* {schema.MAJOR}\.x"):
        schema.load(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": {"name": "x"}}', "\0"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match="not a result"):
        schema.load(text)


@pytest.mark.parametrize("missing", ["settings", "samples", "rows", "environment"])
def test_a_damaged_file_is_refused(missing: str) -> None:
    content = json.loads(schema.dump(made()))
    del content[missing]
    with pytest.raises(SchemaError, match="damaged"):
        schema.load(json.dumps(content))
