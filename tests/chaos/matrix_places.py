"""Where a process of the matrix runs: on loopback, or in a network namespace of its own whose cable can be pulled.

A namespace hangs on one bridge with all others, like hosts on a switch. `pull` takes its port off the bridge: packets vanish in
both directions and nobody is told, as when a switch dies. Namespaces bear the pid of who made them, so what a killed run left is
swept away by the next one.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PREFIX = "serval-chaos"
NETWORK = "10.213.77"
GATEWAY = f"{NETWORK}.254"
BRIDGE_ADDRESS = "02:5e:a1:00:00:01"
"""Its own. Without one a bridge has the lowest of its ports' addresses, and another when that port is pulled: then all the others
send to an address that is gone, and are cut off from this host, where the clients are."""
COMMAND_TIMEOUT_S = 10.0


class NotPermitted(Exception):
    """This machine does not let us make network namespaces."""


@dataclass(frozen=True)
class Place:
    """Where one process lives. `namespace` is empty for ours; `device` is the network device that reaches the others."""

    host: str = "127.0.0.1"
    device: str = "lo"
    namespace: str = ""
    cable: str = ""
    """The switch's end of its cable; empty where there is none to pull."""


class Switch:
    """`with Switch() as switch`: a bridge with this host on it; `connect` adds a namespace. All of it is gone at the end."""

    def __init__(self) -> None:
        self._bridge = f"svc{os.getpid()}"
        self._places: dict[str, Place] = {}

    def __enter__(self) -> "Switch":
        sweep()
        try:
            _ip("link", "add", self._bridge, "address", BRIDGE_ADDRESS, "type", "bridge")
            _ip("addr", "add", f"{GATEWAY}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        except NotPermitted:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._places:
            _ip("netns", "delete", _namespace(name), may_fail=True)
        _ip("link", "delete", self._bridge, may_fail=True)

    def connect(self, name: str) -> Place:
        """A namespace `name` with an address of its own; the same one when asked again."""
        if (known := self._places.get(name)) is not None:
            return known
        number = len(self._places) + 1
        namespace, cable, host = _namespace(name), f"sv{os.getpid()}p{number}", f"{NETWORK}.{number}"
        _ip("netns", "add", namespace)
        place = self._places[name] = Place(host, "eth0", namespace, cable)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", self._bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{host}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        assert Path(f"/sys/class/net/{self._bridge}/address").read_text().strip() == BRIDGE_ADDRESS
        return place

    def pull(self, place: Place) -> None:
        _ip("link", "set", place.cable, "nomaster")

    def plug(self, place: Place) -> None:
        _ip("link", "set", place.cable, "master", self._bridge)


def _namespace(name: str) -> str:
    return f"{PREFIX}-{os.getpid()}-{name}"


def is_unplugged(place: Place) -> bool:
    """As the kernel sees it."""
    return not Path(f"/sys/class/net/{place.cable}/master").exists()


def sweep() -> None:
    """Removes what runs that were killed have left."""
    for line in _ip("netns", "list", may_fail=True).splitlines():
        name = line.split()[0]
        owner = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _ip("netns", "delete", name, may_fail=True)
    for path in Path("/sys/class/net").glob("svc*"):
        owner = path.name.removeprefix("svc")
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _ip("link", "delete", path.name, may_fail=True)


def _ip(*arguments: str, may_fail: bool = False) -> str:
    """ip(8). Raises NotPermitted with what it said."""
    try:
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise NotPermitted("there is no `ip` command (iproute2)") from error
    if done.returncode and not may_fail:
        raise NotPermitted(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
    return done.stdout
