"""What the transport library can do on this machine. Asked in a process of its own: a backend that cannot be made may crash."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

_INTERFACE = re.compile(r"created interface\[\d+\]=\S+ using (\S+) on worker")
"""UCX's debug log names each transport/device pair that it opens."""

_ENVIRONMENT = {"UCX_LOG_LEVEL": "debug", "NIXL_LOG_LEVEL": "FATAL"}


@dataclass
class TransportProbe:
    """`backends` maps every plugin to "" where it can be created, else to why not. `interfaces` are UCX's transport/device pairs,
    such as tcp/eth0, when nothing restricts them. `error` is set when the library itself does not work."""

    backends: dict[str, str] = field(default_factory=dict)
    interfaces: list[str] = field(default_factory=list)
    error: str = ""


def probe_transports(timeout_s: float = 30.0) -> TransportProbe:
    """Tries every plugin. What was found before a crash or the timeout is reported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("UCX_NET_DEVICES", "UCX_TLS")}
    command = [sys.executable, "-m", "kvtransfer.probe"]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            env=environment | _ENVIRONMENT,
        )
        output, end = done.stdout, f"ended with status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"did not answer within {timeout_s:g} s"
    return _read(output.decode(errors="replace"), end)


def _read(output: str, end: str) -> TransportProbe:
    found = TransportProbe(interfaces=sorted(set(_INTERFACE.findall(output))))
    trying = ""
    for line in output.splitlines():
        if not line.startswith('{"'):
            continue
        report = json.loads(line)
        if "error" in report:
            found.error = report["error"]
        elif "trying" in report:
            trying = report["trying"]
        else:
            found.backends |= report
            trying = ""
    if trying:
        found.backends[trying] = f"the process {end}"
    elif end and not found.error and not found.backends:
        found.error = f"the process {end}"
    return found


def main() -> None:
    """The child's part: one JSON object per line; whatever libraries print goes between."""
    try:
        import torch

        cuda = torch.version.cuda
        package = "nixl_cu13" if cuda is not None and cuda.split(".")[0] == "13" else "nixl_cu12"
        api: Any = __import__(f"{package}._api", fromlist=["nixl_agent"])
        agent = api.nixl_agent("probe", api.nixl_agent_config(enable_prog_thread=False, backends=[]))
        plugins = agent.get_plugin_list()
    except Exception as error:
        _say(error=f"{type(error).__name__}: {error}")
        return
    # UCX first: should a later one crash the process, what matters most is known already.
    for plugin in sorted(plugins, key=lambda name: name != "UCX"):
        _say(trying=plugin)
        try:
            agent.create_backend(plugin, {})
        except Exception as error:
            _say(**{plugin: str(error) or type(error).__name__})
        else:
            _say(**{plugin: ""})
    sys.stdout.flush()
    os._exit(0)  # backends that were never used are not worth an orderly end, and some crash in it


def _say(**report: str) -> None:
    sys.stdout.write("\n" + json.dumps(report) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
