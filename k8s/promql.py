"""PromQL out of the names that there are: a metric, a part of it or a label that does not exist is an error when it is written."""

import functools
from dataclasses import dataclass

from telemetry.catalogue import Family, catalogue

SUFFIXES = {"counter": ("total",), "gauge": ("",), "histogram": ("bucket", "sum", "count")}


class UnknownMetric(ValueError):
    """A bug of ours: a dashboard or rule asks for what nobody measures."""


@functools.cache
def families() -> dict[str, Family]:
    return catalogue()


def series(name: str, part: str, window: str = "", **matchers: str) -> str:
    """A selector: `serval_NAME_PART{label=~"…"}[window]`. A matcher's value is a regular expression, `!` in front for its
    opposite."""
    family = families().get(f"serval_{name}")
    if family is None:
        raise UnknownMetric(f"there is no metric serval_{name}")
    if part not in SUFFIXES[family.kind]:
        raise UnknownMetric(f"serval_{name} is a {family.kind}: it has no _{part}")
    _require(family, set(matchers) - ({"le"} if part == "bucket" else set()))
    chosen = ", ".join(
        f'{label}!~"{value[1:]}"' if value.startswith("!") else f'{label}=~"{value}"' for label, value in matchers.items()
    )
    whole = f"serval_{name}_{part}" if part else f"serval_{name}"
    return whole + (f"{{{chosen}}}" if chosen else "") + (f"[{window}]" if window else "")


@dataclass(frozen=True)
class Queries:
    """Expressions over one `window`: Grafana's $__rate_interval, or a rule's own."""

    window: str

    def rate(self, name: str, *by: str, how: str = "sum", **matchers: str) -> str:
        """Of a counter, per second. `how` is max for what every router counts in full."""
        return self._sum(f"rate({series(name, 'total', self.window, **matchers)})", name, by, how)

    def increase(self, name: str, *by: str, how: str = "sum", **matchers: str) -> str:
        """Of a counter, over the window."""
        return self._sum(f"increase({series(name, 'total', self.window, **matchers)})", name, by, how)

    def quantile(self, share: float, name: str, *by: str, **matchers: str) -> str:
        """Of a histogram."""
        inner = self._sum(f"rate({series(name, 'bucket', self.window, **matchers)})", name, ("le", *by))
        return f"histogram_quantile({share:g}, {inner})"

    def share_within(self, name: str, bound: float, **matchers: str) -> str:
        """Of a histogram's observations, those that are at most `bound`, which must be a bucket's."""
        good = series(name, "bucket", self.window, le=repr(float(bound)), **matchers)
        return f"{self._sum(f'rate({good})', name, ())} / {self._observations(name, (), matchers)}"

    def mean(self, name: str, *by: str, **matchers: str) -> str:
        """Of a histogram's observations."""
        total = self._sum(f"rate({series(name, 'sum', self.window, **matchers)})", name, by)
        return f"{total} / {self._observations(name, by, matchers)}"

    def rate_of_sum(self, name: str, *by: str, **matchers: str) -> str:
        """Of what a histogram observed, added up, per second: of seconds, how many are spent at a time."""
        return self._sum(f"rate({series(name, 'sum', self.window, **matchers)})", name, by)

    def _observations(self, name: str, by: tuple[str, ...], matchers: dict[str, str]) -> str:
        return self._sum(f"rate({series(name, 'count', self.window, **matchers)})", name, by)

    def gauge(self, name: str, *by: str, how: str = "sum", **matchers: str) -> str:
        return self._sum(series(name, "", **matchers), name, by, how)

    def _sum(self, inner: str, name: str, by: tuple[str, ...], how: str = "sum") -> str:
        _require(families()[f"serval_{name}"], set(by) - {"le"})
        return f"{how} by ({', '.join(by)}) ({inner})" if by else f"{how}({inner})"


def or_zero(expression: str) -> str:
    """What has never happened has no series: it is none."""
    return f"{expression} or vector(0)"


def _require(family: Family, labels: set[str]) -> None:
    if missing := labels - family.labels:
        raise UnknownMetric(f"{family.name} has no label {', '.join(sorted(missing))}")
