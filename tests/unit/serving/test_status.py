"""A child's reports survive the pipe."""

import os

import pytest

from serving.status import Failed, ProgressReport, Ready, Report, StatusWriter, parse


def reports_of(read: int, write: int) -> list[Report]:
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        return [parse(line) for line in stream]


def test_reports_arrive_as_they_were_sent() -> None:
    read, write = os.pipe()
    status = StatusWriter(write)
    status.progress("loading weights", 9, 9)
    status.ready(Ready("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"))
    status.failed("engine.kv_memory_bytes: too little\nfor one block")
    assert reports_of(read, write) == [
        ProgressReport("loading weights", 9, 9),
        Ready("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
        Failed("engine.kv_memory_bytes: too little for one block"),
    ]


def test_progress_is_thinned_but_its_end_is_told() -> None:
    read, write = os.pipe()
    status = StatusWriter(write)
    for done in range(1, 1001):
        status.progress("loading", done, 1000)
    reports = reports_of(read, write)
    assert len(reports) < 100
    assert reports[-1] == ProgressReport("loading", 1000, 1000)


def test_nobody_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    StatusWriter(write).ready(Ready("a:1", "a:2"))
    with pytest.raises(BrokenPipeError):  # what that has met, and kept to itself
        os.write(write, b"x")
    os.close(write)


def test_a_report_fits_an_atomic_write() -> None:
    read, write = os.pipe()
    StatusWriter(write).failed("x" * 100_000)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        assert len(stream.read()) < 4096  # PIPE_BUF


@pytest.mark.parametrize("line", [b"{}", b"hello", b'{"ready": 3}', b'{"progress": "x"}', b"[]"])
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse(line)
