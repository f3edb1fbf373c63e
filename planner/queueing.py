"""How long requests wait for one of several equal servers (M/G/c), by the classic formulas."""

from math import log

NEVER = 50.0
"""Chernoff's bound on Poisson's tail: that so many servers are busy at a time is less likely than one in e to this. Without it a
pool of millions would be counted through, again and again."""


def waiting_probability(servers: int, offered: float) -> float:
    """Erlang's C: the share of arrivals that must wait. `offered`: rate times service time, below `servers`."""
    busy = offered / servers
    if not busy or servers * (busy - 1 - log(busy)) > NEVER:
        return 0.0
    blocked = 1.0
    for count in range(1, servers + 1):  # Erlang's B, by its recursion
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - busy * (1 - blocked))


def waiting_time_s(servers: int, rate: float, service_s: float, variation: float, share: float) -> float:
    """Seconds within which `share` of the arrivals get a server; infinite where the servers cannot keep up. `variation`: variance
    of the service time over its squared mean. The tail is exponential, its rate that of Erlang's corrected by (1 + variation) / 2
    (Allen and Cunneen)."""
    offered = rate * service_s
    if offered >= servers:
        return float("inf")
    waiting = waiting_probability(servers, offered)
    if waiting <= 1 - share:
        return 0.0
    mean_if_waiting = service_s / (servers - offered) * (1 + variation) / 2
    return mean_if_waiting * log(waiting / (1 - share))
