"""result.json: what goes in comes out, and other files are refused in one sentence."""

from __future__ import annotations

import json

import pytest

from compare import schema
from compare.schema import Result, RowInfo, Sample, SchemaError, Settings, Worker

OLD = """{
 "schema": {"name": "unp-tunnel compare", "version": "1.0"},
 "complete": true,
 "settings": {"scenarios": ["connections"], "rounds": 1, "duration": 2.0, "seed": 1, "method": "aes-256-gcm"},
 "environment": {"kernel": "Linux 6.1"},
 "rows": [{"name": "prefork", "kind": "model", "source": "UNP 30.6", "summary": "a pool of children"}],
 "planned": 1,
 "elapsed": 3.5,
 "stopped": null,
 "samples": [
  {"row": "prefork", "scenario": "connections", "round": 1, "at": 0.5, "invalid": null, "limited": null,
   "notes": [], "figures": {"wall": 2.0, "count": 10, "cpu": 0.004}, "latency_us": [[600, 9], [900, 1]]}
 ]
}
"""


def made() -> Result:
    return Result(
        settings=Settings(["ping-pong"], 2, 0.5, 11, "aes-256-gcm"),
        environment={"kernel": "Linux 6.1", "cores": 2},
        rows=[RowInfo("fork", "model", "UNP 30.5", "one child for each")],
        samples=[
            Sample("fork", "ping-pong", 1, 0.5, figures={"cpu": 0.25}, latency_us=[(90, 1000), (4000, 2)]),
            Sample("prefork", "children", 1, 1.0, workers=[Worker(3, 120, 3000), Worker(2, 80, 2000)]),
            Sample("fork", "load", 1, 1.2, point=2000.0, service_us=[(80, 3)], series=[(0.1, 9.5)]),
            Sample("fork", "ping-pong", 2, 1.5, invalid="wrong byte up, at 7", notes=["é | <b>"]),
        ],
        planned=5,
        elapsed=2.5,
        left_out={"uvloop": "not installed"},
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


def test_an_earlier_minor_version_is_read() -> None:
    old = schema.load(OLD)
    (sample,) = old.samples
    assert (sample.workers, old.left_out, old.settings.most) == ([], {}, {})
    assert (old.settings.end, old.settings.rows) == ("serve", {})
    assert (sample.figures["count"], sample.latency_us) == (10, [(600, 9), (900, 1)])
    assert old.complete


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
