"""A result for other programs: a table for spreadsheets and data frames, and pyperf's JSON.

    Result --+--> CSV: a line for each sample and figure
             `--> pyperf: a benchmark for each row and metric, a run for each sample

Rules: nothing is left out of the CSV, invalid samples included. pyperf knows seconds, bytes and whole
numbers and takes less for better, so it gets times and memory, of valid samples, and no rates.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from compare.analysis import METRICS, Analysis
from compare.schema import Result, Sample

HEADERS = ("row", "kind", "scenario", "point", "round", "at", "invalid", "limited", "figure", "unit", "value")
PYPERF_VERSION = "1.0"  # of its format: pyperf 1.0 and later read it
PYPERF_UNITS = {  # ours, and what it is in pyperf's
    "CPU-s/GB": ("second", 1.0),
    "CPU-s": ("second", 1.0),
    "ms": ("second", 1e-3),
    "us": ("second", 1e-6),
    "us/connection": ("second", 1e-6),
    "us/request": ("second", 1e-6),
    "MB PSS": ("byte", 1e6),
    "KB/connection": ("byte", 1e3),
}


def as_csv(result: Result) -> str:
    """Metrics carry their unit; the raw figures that they are made from have none."""
    kinds = {row.name: row.kind for row in result.rows}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADERS)
    for sample in result.samples:
        point = "" if sample.point is None else f"{sample.point:g}"
        place = (sample.row, kinds.get(sample.row, ""), sample.scenario, point, sample.round, sample.at)
        state = (sample.invalid or "", sample.limited or "")
        for figure, unit, value in figures(sample):
            writer.writerow((*place, *state, figure, unit, value))
    return text.getvalue()


def figures(sample: Sample) -> Iterator[tuple[str, str, float | str]]:
    """Of one sample; an invalid one has its line even if nothing was measured."""
    if not sample.invalid:
        for metric in METRICS.values():
            if metric.scenario == sample.scenario and (value := metric.of(sample)) is not None:
                yield metric.key, metric.unit, value
    yield from ((name, "", value) for name, value in sample.figures.items())
    if sample.invalid and not sample.figures:
        yield "", "", ""


def as_pyperf(result: Result) -> str:
    """pyperf's JSON: `pyperf stats`, `pyperf compare_to` and others read it."""
    analysis = Analysis(result)
    benchmarks = []
    for metric in analysis.metrics:
        if metric.unit not in PYPERF_UNITS:
            continue
        unit, factor = PYPERF_UNITS[metric.unit]
        for row in analysis.names:
            for point in (None, *analysis.points(metric.scenario)):
                values = [value * factor for value in analysis.values(metric, row, point)]
                values = [
                    value for value in values if value > 0
                ]  # pyperf has no benchmark that takes nothing
                if not values:
                    continue
                name = f"{row}.{metric.key}" + (f"@{point:g}" if point is not None else "")
                benchmarks.append(
                    {
                        "metadata": {
                            "name": name,
                            "unit": unit,
                            "description": f"{metric.title}, {metric.unit}",
                        },
                        "runs": [{"values": [value]} for value in values],
                    }
                )
    return (
        json.dumps({"version": PYPERF_VERSION, "metadata": common(result), "benchmarks": benchmarks}) + "\n"
    )


def common(result: Result) -> dict[str, Any]:
    """What all benchmarks share, under pyperf's names where it has one."""
    env = result.environment
    named = {
        "platform": env.get("kernel"),
        "cpu_model_name": env.get("cpu"),
        "cpu_count": env.get("cores"),
        "python_version": env.get("python"),
        "compare_revision": env.get("revision"),
        "compare_method": result.settings.method,
    }
    return {"loops": 1, **{name: value for name, value in named.items() if value}}
