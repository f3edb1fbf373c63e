"""A child process's life, with a server that does as the test says. In a process of its own: it ends by force if need be."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.tiny import write_tiny_llama
from serving import process

SCRIPT = """
import asyncio, sys, time
from protocol.errors import Unavailable
from serving import process
from serving.config import load
from serving.status import Ready, StatusWriter

class Server:
    async def start(self):
        if "never-starts" in sys.argv:
            print("starting", flush=True)
            await asyncio.Event().wait()
        return Ready("a:1", "a:2")

    async def drain(self, timeout_s):
        print("drain", flush=True)
        if "busy" in sys.argv:
            await asyncio.sleep(60)

    async def stop(self, timeout_s):
        print("stop", flush=True)
        if "stuck" in sys.argv:
            time.sleep(60)

    async def check_health(self):
        if "sick" in sys.argv:
            raise Unavailable("the engine has stopped")

process.HEALTH_PERIOD_S = 0.05
config = load(None, {"cluster.stop_timeout_s": 1.0})
asyncio.run(process._serve(Server(), config, StatusWriter(1)))
"""


class Process:
    def __init__(self, *behaviour: str) -> None:
        command = [sys.executable, "-c", SCRIPT, *behaviour]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def lines_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        pytest.fail(f"{text!r} never came")

    def end(self, timeout_s: float = 20) -> tuple[int, list[str], str]:
        output, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output.splitlines(), errors


def test_a_signal_drains_then_stops() -> None:
    process = Process()
    process.lines_until(json.dumps({"grpc": "a:1", "metrics": "a:2", "http": None, "link": None}))
    process.process.send_signal(signal.SIGTERM)
    assert process.end()[:2] == (0, ["drain", "stop"])


def test_a_second_signal_skips_the_drain() -> None:
    process = Process("busy")
    process.lines_until("ready")
    process.process.send_signal(signal.SIGTERM)
    process.lines_until("drain")
    process.process.send_signal(signal.SIGTERM)
    assert process.end()[:2] == (0, ["stop"])


def test_a_signal_while_it_starts_stops_at_once() -> None:
    process = Process("never-starts")
    process.lines_until("starting")
    process.process.send_signal(signal.SIGTERM)
    assert process.end()[:2] == (0, ["stop"])


def test_a_sick_server_ends_its_process_and_says_why() -> None:
    status, lines, errors = Process("sick").end()
    assert status != 0
    assert lines[-1] == "stop"
    assert "drain" not in lines
    assert "the engine has stopped" in errors


def test_a_stop_that_hangs_is_cut_short() -> None:
    process = Process("stuck")
    process.lines_until("ready")
    process.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert process.end()[0] == 1
    assert time.monotonic() - asked < 10


def test_a_container_gives_a_file_and_what_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "serval.yaml"
    file.write_text(f"model: {write_tiny_llama(tmp_path / 'tiny')}\nkubernetes: {{namespace: x}}\nengine: {{block_size: 8}}\n")
    words = ["--role", "decode", "--name", "pod-7", "--config", str(file), "--set", "cluster.host=127.0.0.7"]
    arguments = process.argument_parser().parse_args([*words, "--router", "dns:routers:8002"])
    config = process._read_config(arguments)
    assert (config.cluster.host, config.router.host, config.engine.block_size) == ("127.0.0.7", "127.0.0.7", 8)
    assert arguments.router == ["dns:routers:8002"]
    assert arguments.name == "pod-7"
