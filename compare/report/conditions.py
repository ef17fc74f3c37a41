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
from compare.report.parts import AGAIN, Missing, Section, Spec, Table, not_measured, number, servers
from compare.stats import RESOLUTION

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


def noise(analysis: Analysis) -> Table | None:
    """Headlines of the models that were measured twice."""
    rows = []
    for again in (row for row in analysis.names if row.endswith(AGAIN)):
        for metric in HEADLINES:
            first = analysis.estimate(metric.key, again.removesuffix(AGAIN))
            second = analysis.estimate(metric.key, again)
            if first and second and first.value:
                off = 100 * (second.value / first.value - 1)
                figures = [number(found.value, metric.digits) for found in (first, second)]
                what = f"{metric.scenario}, {metric.unit}"
                rows.append([again.removesuffix(AGAIN), what, *figures, f"{off:+.1f}"])
    headers = ["", "figure", "once", "again", "% off"]
    return Table("The same model twice", headers, rows) if rows else None


def floors(analysis: Analysis) -> str:
    """What two rows must differ by to be told apart, for each headline figure."""
    known = [
        f"{metric.scenario} {100 * max(analysis.floor(metric.key), 2 * RESOLUTION):.1f}%"
        for metric in HEADLINES
        if metric in analysis.metrics
    ]
    return f"CPU that differs by less is not told apart: {', '.join(known)}." if known else ""


def noise_in_words(analysis: Analysis) -> str:
    found = noise(analysis)
    if not found and analysis.result.settings.rounds < 2:
        return "No model was measured twice in this run, nor any in two rounds: its noise floor is not known."
    if not found:
        return (
            "No model was measured twice in this run, so its noise floor is the scatter of all rows over "
            f"the rounds. {floors(analysis)}"
        ).rstrip()
    worst = max(found.rows, key=lambda row: abs(float(row[-1])))
    who = " and ".join(dict.fromkeys(row[0] for row in found.rows))
    return (
        f"Noise floor: {who}, measured a second time as if another model, is off its own figures by at most "
        f"{abs(float(worst[-1])):.1f}% ({worst[1]}). Smaller differences between models mean nothing. "
        f"{floors(analysis)}"
    )


def drift(analysis: Analysis) -> Section | Missing:
    title = "Whether the machine held still"
    data: list[Spec] = []
    cells = []
    for metric in (metric for metric in HEADLINES if metric in analysis.metrics):
        for row in servers(analysis):
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
