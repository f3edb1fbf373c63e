"""Reads traces of requests: when each came, how long its prompt and its answer were (docs/planner.md has the formats).

CSV with a header line, or JSON lines. The names are those of the public traces: Mooncake's JSON lines (`timestamp` in
milliseconds, `input_length`, `output_length`), Azure's CSV (`TIMESTAMP` as a date, `ContextTokens`, `GeneratedTokens`), or plainly
`time_s`, `isl`, `osl`.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

MAX_TOKENS = 10**8
"""More is a mistake in the file, not a prompt."""
MAX_TIME_S = 1e15
"""Thirty million years: larger numbers are none of seconds, and lose their digits."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `time_s`: seconds from any fixed moment."""

    time_s: float
    isl: int
    osl: int


def read_trace(path: Path) -> list[Arrival]:
    """In the order of time, which the file need not keep; the first arrives at 0. Raises ConfigError, naming line and field."""
    rows = _json_lines if path.suffix.lower() in (".jsonl", ".json", ".ndjson") else _csv_lines
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            arrivals = [_arrival(path, line, row) for line, row in rows(path, lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace: {path} cannot be read: {error}") from error
    if len(arrivals) < 2:
        raise ConfigError(f"trace: {path} holds {len(arrivals)} requests; a rate needs at least two")
    arrivals.sort(key=lambda one: one.time_s)
    start = arrivals[0].time_s
    if start == arrivals[-1].time_s:
        raise ConfigError(f"trace: {path} has all of its {len(arrivals)} requests at one moment; a rate needs a while")
    return [Arrival(one.time_s - start, one.isl, one.osl) for one in arrivals] if start else arrivals


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"trace: {path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"trace: {path} line {number} is not a JSON object")
        yield number, row


def _csv_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    for row in reader:
        yield reader.line_num, row


def _seconds(value: Any) -> float:
    return float(value)


def _milliseconds(value: Any) -> float:
    return float(value) / 1000


def _date(value: Any) -> float:
    """ISO 8601, or seconds. Digits of the fraction after the sixth, which Azure's traces have, are dropped."""
    text = str(value)
    try:
        return float(text)
    except ValueError:
        head, dot, fraction = text.partition(".")
        digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
        moment = datetime.fromisoformat(head + dot + digits[:6] + fraction[len(digits) :])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


TIME_FIELDS: dict[str, Callable[[Any], float]] = {
    "time_s": _seconds,
    "arrival_s": _seconds,
    "timestamp": _milliseconds,
    "TIMESTAMP": _date,
}
ISL_FIELDS = ("isl", "input_length", "ContextTokens")
OSL_FIELDS = ("osl", "output_length", "GeneratedTokens")


def _arrival(path: Path, line: int, row: Mapping[str, Any]) -> Arrival:
    where = f"trace: {path} line {line}"
    time_field = _field(where, row, tuple(TIME_FIELDS))
    try:
        time_s = TIME_FIELDS[time_field](row[time_field])
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {time_field} is not a time: {row[time_field]!r}") from None
    if not abs(time_s) < MAX_TIME_S:
        raise ConfigError(f"{where}: {time_field} is not a time: {row[time_field]!r}")
    return Arrival(time_s, _tokens(where, row, ISL_FIELDS), _tokens(where, row, OSL_FIELDS))


def _tokens(where: str, row: Mapping[str, Any], names: tuple[str, ...]) -> int:
    name = _field(where, row, names)
    try:
        value = float(row[name])
    except (TypeError, ValueError, OverflowError):
        value = 0.0
    if value != value or not 1 <= value <= MAX_TOKENS or value != int(value):
        raise ConfigError(f"{where}: {name} must be a whole number from 1, not {row[name]!r}")
    return int(value)


def _field(where: str, row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise ConfigError(f"{where}: none of the fields {', '.join(names)} is there")
    return found
