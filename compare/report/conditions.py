"""Where and how a run was made, and how far its figures can be trusted.

environment    the machine and the software, in name and value
noise          the same model measured twice: what differs less is noise
drift          every sample against its row's median, in the order in which they were taken
"""

from __future__ import annotations

import shlex
from statistics import median
from typing import Any

from compare.analysis import HEADLINES, Analysis
from compare.report.draw import colours, told_apart, values
from compare.report.parts import Missing, Section, Spec, Table, cell, not_measured

NEAR = 5  # per cent off the median: what most samples should keep within


def environment(analysis: Analysis) -> list[tuple[str, str]]:
    """For people; result.json has all of it. What an older file does not say is left out."""
    env, settings = analysis.result.environment, analysis.result.settings
    cores = env.get("cores", "?")
    said = [
        ("when", f"{env.get('started', '?')}, {analysis.result.elapsed:,.0f} s"),
        ("rounds", f"{settings.rounds} of {settings.duration:g} s a sample, seed {settings.seed}"),
        ("method", settings.method),
        ("processor", f"{env.get('cpu', '?')}, {cores} cores{', virtual' if env.get('hypervisor') else ''}"),
        ("abilities", ", ".join(env.get("cpu_flags", ())) or "none that ciphers use"),
        ("governor", env.get("governor")),
        ("pinned", pinned(env.get("pinned"))),
        ("CPU from", env.get("cpu_source")),
        ("kernel", env.get("kernel")),
        ("python", env.get("python")),
        ("cryptography", f"{env.get('cryptography')} with {env.get('openssl_of_cryptography')}"),
        ("unp-tunnel", f"{env.get('unp_tunnel')}, revision {env.get('revision')}"),
        ("peers", ", ".join(f"{name} {text}" for name, text in env.get("peers", {}).items()) or "none"),
        ("somaxconn", env.get("sysctl", {}).get("net.core.somaxconn")),
        ("open files", " of ".join(map(str, env.get("open_files", ())))),
        ("load before", ", ".join(map(str, env.get("load_average", ())))),
    ]
    return [(name, str(value)) for name, value in said if value]


def command(analysis: Analysis) -> str:
    """How to make the run again."""
    return shlex.join(analysis.result.environment.get("command", ["compare", "run"]))


def pinned(cores: Any) -> str | None:
    if not cores:
        return None
    if cores["server"] == cores["generator"]:
        return "everything on one core"
    return f"server {cores['server']}, generator {cores['generator']}, target {cores['target']}"


def noise(analysis: Analysis) -> list[str]:
    """From where on a difference is one, and how far apart the same model came out twice."""
    said = []
    headlines = [metric for metric in HEADLINES if metric in analysis.metrics]
    floors = {metric: floor for metric in headlines if (floor := analysis.floor(metric.key))}
    if floors:
        listed = ", ".join(f"{metric.scenario} {100 * floor:.1f}%" for metric, floor in floors.items())
        said.append(f"Noise floor: CPU that differs by less is not told apart: {listed}.")
    nulls = {metric: analysis.null[metric.key] for metric in headlines if metric.key in analysis.null}
    if analysis.null_of and nulls:
        listed = ", ".join(f"{m.scenario} {100 * (null.ratio - 1):+.1f}%" for m, null in nulls.items())
        said.append(f"Null run: {analysis.null_of[0]}, entered twice, differs from itself by: {listed}.")
    elif not analysis.null_of:
        said.append("No model was entered twice, so the noise floor is from the rows' scatter alone.")
    return said


def twice(analysis: Analysis) -> Table | None:
    """Headlines of the model that was entered twice."""
    rows = []
    for metric in HEADLINES:
        null = analysis.null.get(metric.key)
        if null and analysis.null_of:
            figures = [cell(analysis, metric.key, row) for row in analysis.null_of]
            off, floor = f"{100 * (null.ratio - 1):+.1f}", f"{100 * null.floor:.1f}"
            rows.append([f"{metric.scenario}, {metric.unit}", *figures, off, floor])
    note = "Scatter: by how much chance may move a median of so few rounds, from all rows together."
    headers = ["", "once", "again", "% off", "scatter\n%"]
    return Table("The same model twice", headers, rows, note) if rows else None


def drift(analysis: Analysis) -> Section | Missing:
    title = "Whether the machine held still"
    data: list[Spec] = []
    cells = []
    for metric in (metric for metric in HEADLINES if metric in analysis.metrics):
        for row in analysis.servers:
            found = [(s, v) for s in analysis.valid(row, metric.scenario) if (v := metric.of(s))]
            if len(found) < 2:
                continue
            middle = median(value for _, value in found)
            for sample, value in found:
                off = 100 * (value / middle - 1)
                data.append({"scenario": metric.scenario, "row": row, "at": sample.at, "off": off})
                line = [f"{sample.at:,.1f}", row, metric.scenario, str(sample.round), f"{off:+.1f}"]
                cells.append((sample.at, line))
    if not data:
        return not_measured(title, "bulk-up, bulk-down, connections or ping-pong in a second round")
    order = [m.scenario for m in HEADLINES if m in analysis.metrics]

    def spec(width: int, narrow: bool) -> Spec:
        x = {"field": "at", "type": "quantitative", "axis": {"title": "seconds into the run", "tickCount": 6}}
        axis = {"title": "% off the row's median", "tickCount": 6}
        y = {"field": "off", "type": "quantitative", "axis": axis}
        apart = told_apart("scenario", order, colours(order), 2 if narrow else 4)
        return {
            "width": width - 60,
            "height": 240,
            "layer": [
                {"mark": {"type": "rule", "color": "var(--mark)"}, "encoding": {"y": {"datum": 0}}},
                {
                    "data": values(data),
                    "mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.85},
                    "encoding": {"x": x, "y": y, **apart, "description": {"field": "row"}},
                },
            ],
        }

    within = sum(abs(point["off"]) <= NEAR for point in data)
    half = sorted(data, key=lambda point: point["at"])
    early, late = half[: len(half) // 2], half[len(half) // 2 :]
    shift = median(p["off"] for p in late) - median(p["off"] for p in early)
    sentence = (
        f"{100 * within / len(data):.0f}% of the samples lie within {NEAR}% of their row's median; from the "
        f"first half of the run to the second the CPU figures moved by {shift:+.1f}%."
    )
    rows = [row for _, row in sorted(cells, key=lambda entry: entry[0])]
    table = Table(title, ["seconds", "row", "scenario", "round", "% off"], rows, bulky=True)
    return Section("drift", title, sentence, [table], spec)
