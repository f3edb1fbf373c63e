"""Traces in the formats of the public ones; a line that does not fit is named."""

from pathlib import Path

import pytest

from planner.trace import Arrival, read_trace
from planner.workload import Workload
from protocol.errors import ConfigError


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_mooncake_s_json_lines(tmp_path: Path) -> None:
    lines = (
        '{"timestamp": 3000, "input_length": 500, "output_length": 9, "hash_ids": [1, 2]}\n\n'
        '{"timestamp": 1000, "input_length": 6955, "output_length": 52}\n'
    )
    assert read_trace(write(tmp_path, "t.jsonl", lines)) == [Arrival(0.0, 6955, 52), Arrival(2.0, 500, 9)]


def test_azure_s_csv(tmp_path: Path) -> None:
    lines = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,110,27\n"
        "2023-11-16 18:18:04+00:00,5,6\n"
    )
    first, second, third = read_trace(write(tmp_path, "t.csv", lines))
    assert (first.isl, first.osl, second.isl) == (4808, 10, 110)
    assert second.time_s == pytest.approx(0.052) and third.time_s == pytest.approx(60.02004)


def test_plain_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    arrivals = read_trace(write(tmp_path, "t.csv", "\ufefftime_s,isl,osl,more\n10,1,2,x\n10.5,3,4,y\n"))
    assert arrivals == [Arrival(0.0, 1, 2), Arrival(0.5, 3, 4)]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("t.csv", "time_s,isl,osl\n0,1,1\n1,0,1\n", r"line 3: isl must be a whole number from 1, not '0'"),
        ("t.csv", "time_s,isl,osl\n0,1,1\n1,5\n", r"line 3: none of the fields osl, output_length, GeneratedTokens"),
        ("t.csv", "time_s,isl\n0,1\n", r"line 2: none of the fields osl"),
        ("t.csv", "when,isl,osl\n0,1,1\n", r"line 2: none of the fields time_s, arrival_s, timestamp, TIMESTAMP"),
        ("t.csv", "TIMESTAMP,isl,osl\nyesterday,1,1\n", r"line 2: TIMESTAMP is not a time: 'yesterday'"),
        ("t.csv", "time_s,isl,osl\nnan,1,1\n", r"line 2: time_s is not a time"),
        ("t.csv", "time_s,isl,osl\n0,1.5,1\n", r"isl must be a whole number"),
        ("t.csv", "time_s,isl,osl\n0,1,1\n", r"holds 1 requests"),
        ("t.csv", "", r"holds 0 requests"),
        ("t.csv", "time_s,isl,osl\n5,1,1\n5,2,2\n", r"has all of its 2 requests at one moment"),
        ("t.csv", "time_s,isl,osl\n1e308,1,1\n-1e308,1,1\n", r"line 2: time_s is not a time: '1e308'"),
        ("t.jsonl", f'{{"time_s": 1{"0" * 400}, "isl": 1, "osl": 1}}\n', r"line 1: time_s is not a time"),
        ("t.jsonl", f'{{"time_s": 1, "isl": 1{"0" * 400}, "osl": 1}}\n', r"line 1: isl must be a whole number"),
        ("t.jsonl", "[" * 100_000, r"line 1 is not JSON"),
        ("t.jsonl", "{\n", r"line 1 is not JSON"),
        ("t.jsonl", "[1]\n", r"line 1 is not a JSON object"),
        ("t.jsonl", '{"timestamp": 0, "input_length": "many", "output_length": 1}\n', r"line 1: input_length must be"),
        ("t.jsonl", '{"timestamp": null, "input_length": 1, "output_length": 1}\n', r"line 1: none of the fields time_s"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as told:
        read_trace(write(tmp_path, name, text))
    assert str(told.value).startswith("trace: ") and "\n" not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_a_workload_is_the_busiest_period_s() -> None:
    quiet = [Arrival(float(second), 100, 10) for second in range(0, 600, 10)]
    busy = [Arrival(600 + second / 10, 300, 50) for second in range(600)]
    workload = Workload.of_trace(quiet + busy, period_s=60)
    assert workload.rate == 10
    assert workload.mean_rate == pytest.approx(1.0, rel=0.01)
    assert workload.isl == pytest.approx((60 * 100 + 600 * 300) / 660)
    assert workload.long_isl == 300
    assert workload.context == pytest.approx((60 * 10 * 105 + 600 * 50 * 325) / (60 * 10 + 600 * 50))
    assert Workload.constant(100, 10, 2.0).context == 105
