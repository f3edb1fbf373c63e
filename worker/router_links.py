"""A worker's links, one per router, wherever the routers are.

A router is named as `host:port`, or as `dns:name:port`: every address behind the name is a router. Such names are looked up
again and again, so routers that come are dialled within one period and those that go are forgotten.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable

from worker.config import LinkConfig
from worker.router_link import RouterLink

logger = logging.getLogger(__name__)

DNS = "dns:"

Resolve = Callable[[str, int], Awaitable[set[str]]]
"""(name, port) → `host:port` of everything behind the name. Raises OSError when it cannot be looked up."""


async def look_up(name: str, port: int) -> set[str]:
    """Asks the system's resolver. IPv4 addresses where the name has any: a router listens on one address."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    v4 = {f"{address[0]}:{port}" for family, *_, address in found if family == socket.AF_INET}
    return v4 or {f"[{address[0]}]:{port}" for family, *_, address in found if family == socket.AF_INET6}


class RouterLinks:
    """All methods belong to one event loop. `make_link` gives a link that has not been started.

    A link whose router has left the DNS answer stays while its stream lives (a router that drains still has answers to end) and
    is dropped when it does not. A failed look-up changes nothing.
    """

    def __init__(
        self, routers: Iterable[str], make_link: Callable[[str], RouterLink], config: LinkConfig, resolve: Resolve = look_up
    ) -> None:
        self._routers = tuple(routers)
        self._make_link = make_link
        self._config = config
        self._resolve = resolve
        self._links: dict[str, RouterLink] = {}
        self._followers: list[asyncio.Task[None]] = []
        self._is_draining = False

    def __repr__(self) -> str:
        return f"RouterLinks({', '.join(repr(link) for link in self._links.values())})"

    @property
    def live(self) -> int:
        """How many routers know this worker."""
        return sum(link.is_live for link in self._links.values())

    @property
    def has_joined(self) -> bool:
        """At least one router knows this worker."""
        return any(link.is_live for link in self._links.values())

    def start(self) -> None:
        for router in self._routers:
            if router.startswith(DNS):
                name, _, port = router.removeprefix(DNS).rpartition(":")
                follower = asyncio.create_task(self._follow(name, int(port)), name=f"follow-{name}")
                self._followers.append(follower)
            else:
                self._add(router)

    def say_draining(self) -> None:
        """To every router, also to those that are found from now on."""
        self._is_draining = True
        for link in self._links.values():
            link.say_draining()

    async def stop(self) -> None:
        for follower in self._followers:
            follower.cancel()
        links, self._links = self._links, {}
        await asyncio.gather(*(link.stop() for link in links.values()))

    async def _follow(self, name: str, port: int) -> None:
        """Keeps one link per address behind `name`, for ever."""
        mine: set[str] = set()
        why_not = ""
        while True:
            try:
                found = await asyncio.wait_for(self._resolve(name, port), self._config.resolve_timeout_s)
            except (OSError, TimeoutError) as error:
                if why_not != (why_not := str(error) or "no answer in time"):  # once, not once per period
                    logger.warning("routers: %s cannot be looked up: %s", name, why_not)
            except Exception:  # a bug, and without another try new routers would never be found
                logger.exception("routers: looking up %s failed", name)
            else:
                why_not = ""
                for address in found - mine:
                    self._add(address)
                mine |= found
                for address in sorted(mine - found):
                    if not self._links[address].is_live:
                        mine.remove(address)
                        await self._links.pop(address).stop()
            await asyncio.sleep(self._config.resolve_period_s)

    def _add(self, address: str) -> None:
        if address in self._links:  # said twice
            return
        link = self._links[address] = self._make_link(address)
        if self._is_draining:
            link.say_draining()
        link.start()
