"""The launcher's decisions, without processes."""

import json
import shlex
import socket

import pytest

from protocol.errors import ConfigError
from serving.announce import announcement, curl_line
from serving.config import load
from serving.launcher import ClusterFailed, Slot
from serving.ports import require_free
from serving.roles import Member, build, members, metrics_port
from serving.status import Ready
from worker.spec import silent


class DeadChild:
    def describe_exit(self) -> str:
        return "was killed by SIGSEGV"


def dead_slot() -> Slot:
    slot = Slot(Member("decode", 0), deaths_most=5)
    slot.child = DeadChild()  # type: ignore[assignment]
    return slot


def test_pauses_grow_while_a_process_keeps_dying() -> None:
    slot = dead_slot()
    assert [slot.next_pause_s(now) for now in (0, 1, 2, 3)] == [0.5, 1.0, 2.0, 4.0]


def test_five_deaths_within_a_minute_end_the_cluster() -> None:
    slot = dead_slot()
    for now in (0, 10, 20, 30):
        slot.next_pause_s(now)
    with pytest.raises(ClusterFailed, match=r"decode-0 died 5 times within 60 s .*; the last time it was killed by SIGSEGV"):
        slot.next_pause_s(40)


def test_rare_deaths_never_do() -> None:
    slot = dead_slot()
    assert {slot.next_pause_s(now) for now in range(0, 10_000, 61)} == {0.5}


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^router.http_port: cannot listen on 127.0.0.1:{port}: Address already in use$"):
            require_free("127.0.0.1", port, "router.http_port")
    require_free("127.0.0.1", port, "router.http_port")
    require_free("127.0.0.1", 0, "router.http_port")


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^cluster.host: cannot listen on 192\.0\.2\.1:9101: "):
        require_free("192.0.2.1", 9101, "cluster.host")


def test_a_worker_whose_metrics_port_is_taken_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config, member = load(None, {"cluster.metrics_port": port - 1}), Member("prefill")
        says = rf"^cluster\.metrics_port: cannot listen on 127.0.0.1:{port}: Address already in use$"
        with pytest.raises(ConfigError, match=says):
            build(member, config, (), silent)


def test_members_and_their_metrics_ports() -> None:
    config = load(None, {"cluster.prefill": 2, "cluster.decode": 1})
    names = [member.name for member in members(config)]
    assert names == ["router", "prefill-0", "prefill-1", "decode-0"]
    assert [metrics_port(config, member) for member in members(config)[1:]] == [9101, 9102, 9103]
    anywhere = load(None, {"cluster.metrics_port": 0})
    assert metrics_port(anywhere, Member("decode", 0)) == 0


def test_the_announcement_names_every_address_and_a_line_to_try() -> None:
    ready = {
        "router": Ready("h:8001", "h:8000", "h:8000"),
        "prefill-0": Ready("h:1", "h:9101"),
        "decode-0": Ready("h:2", "h:9102"),
    }
    text = announcement(load(None, {}), ready, 7.25)
    for part in ("http://h:8000/v1", "h:8001", "http://h:9101/metrics", "http://h:9102/metrics", "ready in 7.2 s", "curl -N"):
        assert part in text


def test_the_line_to_try_is_one_shell_command_with_a_json_body() -> None:
    words = shlex.split(curl_line("http://h:1", "it's a model"))
    assert words[2] == "http://h:1/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "it's a model"
