"""The run as JSON and as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from performance.figures import chunk_rate, cpu, each, failed, first, first_quickack, p50, p99, rate, share
from performance.measure import CONNECTIONS, STREAMS, Turn
from performance.overload import Overload
from performance.soak import Soak
from performance.stats import Spread, added, cell, ratio, spread
from performance.subjects import REPO
from performance.targets import Target

__all__ = ["as_list", "between_markers", "markdown", "plain_command", "table"]

QUIET = 0.8  # the share of its core that a subject has at least, where nobody else uses the machine
BUSY = "Requests a second and latencies are then worth little; CPU a request and the ratios a little more."

type Turns = dict[str, list[Turn]]
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"


def _middle(figure: Spread | None, digits: int = 4) -> float | None:
    return None if figure is None else round(figure.middle, digits)


def as_list(turns: Turns, versions: dict[str, str]) -> list[dict[str, Any]]:
    """One object for each subject and number of connections; figures are medians over the rounds."""
    found: list[dict[str, Any]] = []
    direct = turns["direct"]
    for name, own in turns.items():
        measured = [turn for turn in own if not turn.reason]
        reason = next((turn.reason.replace(f"{REPO}/", "") for turn in own if turn.reason), None)
        for n in CONNECTIONS:
            rates = spread(each(own, rate(n)))
            found.append(
                {
                    "name": name,
                    "connections": n,
                    "requests_per_s": _middle(rates, 1),
                    "p50_ms": _middle(spread(each(own, p50(n)))),
                    "p99_ms": _middle(spread(each(own, p99(n)))),
                    "rss_mb": _middle(spread(each(own, lambda turn: turn.rss_mb)), 1),
                    "failed": sum(turn.points[n].outcome.failed for turn in measured) if measured else None,
                    "requests_per_s_range": None if rates is None else [rates.low, rates.high],
                    "added_p50_ms": _middle(added(each(own, p50(n)), each(direct, p50(n)))),
                    "added_p99_ms": _middle(added(each(own, p99(n)), each(direct, p99(n)))),
                    "cpu_us_per_request": _middle(spread(each(own, cpu(n))), 1),
                    "core_share": _middle(spread(each(own, share(n))), 3),
                    "cpu_us_per_chunk": _middle(spread(each(own, lambda turn: turn.cpu_us_per_chunk)), 1),
                    "first_token_ms": _middle(spread(each(own, first))),
                    "added_first_token_ms": _middle(added(each(own, first), each(direct, first))),
                    "added_first_token_quickack_ms": _middle(
                        added(each(own, first_quickack), each(direct, first_quickack))
                    ),
                    "stream_failed": sum(turn.stream.failed for turn in measured if turn.stream) if measured else None,
                    "start_s": _middle(spread(each(own, lambda turn: turn.start_s)), 2),
                    "citadel_ratio": _middle(ratio(each(turns["citadel"], rate(n)), each(own, rate(n))), 3),
                    "rounds": len(measured),
                    "measured": bool(measured),
                    "reason": reason,
                    "version": versions.get(name) or None,
                }
            )
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _rows(turns: Turns, cells: Callable[[str, list[Turn]], list[str]]) -> list[list[str]]:
    rows = []
    for name, own in turns.items():
        if all(turn.reason for turn in own):
            rows.append([name, f"not measured: {own[0].reason.replace(f'{REPO}/', '')}".replace("|", "/")])
        else:
            rows.append([name, *cells(name, own)])
    width = max((len(row) for row in rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def _throughput(turns: Turns) -> str:
    def cells(name: str, own: list[Turn]) -> list[str]:
        return [
            *(cell(spread(each(own, rate(n)))) for n in CONNECTIONS),
            cell(spread(each(own, cpu(16)))),
            cell(spread(each(own, share(16))), 2),
            cell(spread(each(own, lambda turn: turn.rss_mb))),
            cell(spread(each(own, lambda turn: turn.start_s)), 1),
            str(failed(own)),
        ]

    head = [
        "",
        *(f"req/s, {n} conn" for n in CONNECTIONS),
        "CPU µs/request",
        "share of its core",
        "RSS, MB",
        "start, s",
        "failed",
    ]
    return table(head, _rows(turns, cells))


def _latency(turns: Turns) -> str:
    direct = turns["direct"]

    def cells(name: str, own: list[Turn]) -> list[str]:
        figures = []
        for n in CONNECTIONS:
            for point in (p50(n), p99(n)):
                values = each(own, point)
                figures.append(cell(spread(values) if name == "direct" else added(values, each(direct, point)), 2))
        return figures

    head = ["", *(f"{p}, {n} conn" for n in CONNECTIONS for p in ("p50", "p99"))]
    return table(head, [["direct (whole)", *row[1:]] if row[0] == "direct" else row for row in _rows(turns, cells)])


def _streams(turns: Turns) -> str:
    direct = turns["direct"]

    def cells(name: str, own: list[Turn]) -> list[str]:
        def first_of(figure: Callable[[Turn], float | None]) -> str:
            values = each(own, figure)
            return cell(spread(values) if name == "direct" else added(values, each(direct, figure)), 2)

        return [
            cell(spread(each(own, lambda turn: turn.cpu_us_per_chunk))),
            cell(spread(each(own, chunk_rate))),
            first_of(first),
            first_of(first_quickack),
        ]

    head = ["", "CPU µs/chunk", "chunks/s", "first token, ms", "the same, acknowledged at once"]
    return table(head, [["direct (whole)", *row[1:]] if row[0] == "direct" else row for row in _rows(turns, cells)])


def _ratios(turns: Turns) -> str:
    ours = turns["citadel"]
    peers = {name: own for name, own in turns.items() if name not in ("direct", "citadel")}

    def cells(name: str, own: list[Turn]) -> list[str]:
        return [
            *(cell(ratio(each(ours, rate(n)), each(own, rate(n))), 2) for n in CONNECTIONS),
            cell(ratio(each(ours, cpu(16)), each(own, cpu(16))), 3),
            cell(ratio(each(ours, lambda t: t.cpu_us_per_chunk), each(own, lambda t: t.cpu_us_per_chunk)), 2),
            cell(ratio(each(ours, lambda turn: turn.rss_mb), each(own, lambda turn: turn.rss_mb)), 2),
        ]

    head = ["citadel ÷", *(f"req/s, {n} conn" for n in CONNECTIONS), "CPU/request", "CPU/chunk", "RSS"]
    return table(head, _rows(peers, cells))


def _soak(soak: Soak) -> str:
    step = max(1, len(soak.curve) // 10)
    curve = ", ".join(f"{n:,}: {mb:.1f}" for n, mb in soak.curve[step - 1 :: step])
    return (
        f"{soak.requests:,} requests in {soak.took_s:.0f} s, each tenth a stream, each second stream hung up on: "
        f"{soak.failed} failed, {soak.streams_hung_up:,} hung up, {soak.streams_cut_at_engine:,} of them cut at the "
        f"engine, {soak.still_busy_at_engine} still running there at the end.\n"
        f"RSS in MB: {soak.rss_before_mb:.1f} before; then {curve}. Growth after the first quarter: "
        f"{soak.growth_mb:+.1f} MB. Open files: {soak.open_files_before} before, {soak.open_files_after} after."
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _overload(over: Overload) -> str:
    rows = [
        ["offered, requests/s", f"{over.capacity_per_s / 2:,.0f}", f"{over.offered_per_s:,.0f}"],
        ["answered with 200, requests/s", "", f"{over.admitted_per_s:,.0f}"],
        ["p50 of those, ms", _figure(over.unloaded_p50_ms), _figure(over.admitted_p50_ms)],
        ["p99 of those, ms", _figure(over.unloaded_p99_ms), _figure(over.admitted_p99_ms)],
        ["refused with 429 or 503", "", f"{over.refused:,} ({over.refused_share:.1%})"],
        ["of them with Retry-After", "", f"{over.refused_with_retry_after:,}"],
        ["p99 of a refusal, ms", "", _figure(over.refused_p99_ms)],
        ["other failures", "", ", ".join(f"{n}: {c}" for n, c in over.other_failures.items()) or "none"],
        ["share of its core", "", f"{over.core_share:.2f}"],
    ]
    return (
        f"An engine that takes {over.service_ms:.0f} ms, {over.places} places at the model and {over.queue} "
        f"in its queue: a capacity of {over.capacity_per_s:,.0f} requests/s.\n\n"
    ) + table(["", "half of it", "four times it"], rows)


def _targets(found: Sequence[Target]) -> str:
    rows = [[target.what, target.kind, target.bound, target.found, target.verdict] for target in found]
    return table(["", "", "bound", "this run", ""], rows)


def plain_command(command: Sequence[str]) -> str:
    """A command as one would type it in the repository, without this machine's paths."""
    return shlex.join(word.replace(f"{REPO}/", "") for word in command)


def markdown(
    turns: Turns,
    versions: dict[str, str],
    notes: Sequence[str],
    soak: Soak | None,
    over: Overload | None,
    targets: Sequence[Target] = (),
) -> str:
    """The whole report. `notes` say where and how the run was."""
    count = len(turns["direct"])
    got = spread(each(turns["citadel"], share(16)))
    if got is not None and got.middle < QUIET:
        notes = [*notes, f"**Others used the machine**: our gateway got only {got.middle:.0%} of its core. {BUSY}"]
    parts = ["\n".join(f"- {note}" for note in notes)]
    parts.append("One round." if count == 1 else f"Medians over {count} interleaved rounds, ranges in brackets.")
    if targets:
        parts += ["### Targets", _targets(targets)]
    parts += ["### Throughput", _throughput(turns)]
    if set(turns) - {"direct", "citadel"}:
        parts += ["### Ratios, within each round", _ratios(turns)]
    parts += ["### Latency added to the engine's own, ms", _latency(turns)]
    parts += [f"### Streams ({STREAMS} at once for the chunks, one for the first token)", _streams(turns)]
    if soak is not None:
        parts += ["### Soak", _soak(soak)]
    if over is not None:
        parts += ["### Overload", _overload(over)]
    parts += ["### Versions and commands"]
    rows = []
    for name, own in turns.items():
        command = next((turn.command for turn in own if turn.command), [])
        if command:
            rows.append([name, versions.get(name, ""), f"`{plain_command(command)}`"])
    parts.append(table(["", "version", "started with"], rows))
    return "\n\n".join(parts)


def between_markers(page: Path, text: str) -> None:
    """Replace what is between the page's two markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
