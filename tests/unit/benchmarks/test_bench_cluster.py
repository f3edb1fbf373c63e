"""How a benchmark's processes are told where they are."""

import pytest

from benchmarks.cluster import ClusterError, Place, environment, read_settings, settings_at


def test_each_process_listens_where_it_runs_and_all_know_the_router() -> None:
    settings = {
        "model": "/models/tiny",
        "cluster": {"host": "127.0.0.1", "metrics_port": 9100},
        "router": {"host": "127.0.0.1", "http_port": 8000, "grpc_port": 8001, "link_port": 8002, "model": "tiny"},
        "transfer": {"net_device": "lo", "mode": "whole_prompt"},
    }
    placed = settings_at(settings, Place("10.0.0.2", "eth7"), router=Place("10.0.0.1"))
    assert placed["cluster"] == {"host": "10.0.0.2", "metrics_port": 0}
    assert placed["router"] == {"host": "10.0.0.1", "http_port": 0, "grpc_port": 0, "link_port": 0, "model": "tiny"}
    assert placed["transfer"] == {"net_device": "eth7", "mode": "whole_prompt"}
    assert settings["router"]["http_port"] == 8000  # what it was made from stays


def test_workers_compute_with_as_many_threads_as_asked() -> None:
    assert environment(3)["OMP_NUM_THREADS"] == "3"


def test_a_wrong_setting_is_named_in_the_commands_own_words() -> None:
    with pytest.raises(ClusterError, match=r"engine\.no_such_thing"):
        read_settings(None, ["engine.no_such_thing=1"])
