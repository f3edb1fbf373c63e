"""What workers cost while they are there."""

from router.worker_time import WorkerTime


def test_seconds_of_all_workers_of_a_pool() -> None:
    now = [100.0]
    times = WorkerTime(lambda: now[0])
    assert times.read() == {}
    times.count("decode", 1)
    now[0] += 10
    assert times.read() == {"decode": 10.0}
    times.count("decode", 3)
    times.count("prefill", 1)
    now[0] += 5
    assert times.read() == {"decode": 25.0, "prefill": 5.0}
    times.count("decode", 0)
    now[0] += 100
    assert times.read() == {"decode": 25.0, "prefill": 105.0}
