"""Tenants: what each may ask for, and what it has used of that. Decisions are pure: state and the time give a decision.

A request is charged at the door with its prompt and the answer that its tenant's requests usually get, and at its end the charge
is corrected by what it took. So a limit in tokens holds over time, and one large `max_tokens` blocks nobody.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import RateLimited
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.fair_queue import Share
from telemetry.recent import RecentMean

_REMEMBERED = 8
"""About so many answers of a tenant say what its next one takes."""
_UNKNOWN_WAIT_S = 1.0


class TenantLimits(BaseModel):
    """What one tenant may ask of each router, and its turn among the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests accepted per minute; more are refused with 429. A minute's worth may come at once. None: no limit.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of prompts and answers per minute, estimated at the door and corrected at the end. One request may be "
        "larger than a minute's worth: the next then waits until that is paid off. None: no limit.",
    )
    max_concurrent: int | None = Field(
        default=None,
        ge=1,
        description="Answers open at a time, waiting ones included; more are refused with 429. None: no limit.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="Share of the cluster's tokens relative to others of the same priority, where more is asked for than there is.",
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Class: a higher one goes first where requests wait. A lower one still gets one turn in router.priority_turns.",
    )


class LimitReached(RateLimited):
    """`limit` is the name of the field of TenantLimits."""

    def __init__(self, tenant: str, limit: str, value: int, retry_after_s: float) -> None:
        super().__init__(f"{limit}: tenant {tenant!r} is at its limit of {value}", retry_after_s)
        self.limit = limit


@dataclass
class Bucket:
    """What was taken and has not grown back. The limit is a part of each question, so that it may change at any time."""

    taken: float = 0.0
    at: float = 0.0
    """When that was true, in seconds."""

    def wait_s(self, amount: float, per_minute: int | None, now: float) -> float:
        """Seconds until `amount`, or a whole minute's worth if that is less, can be taken; 0: now. Changes nothing."""
        if per_minute is None:
            return 0.0
        missing = min(amount, per_minute) - (per_minute - self._still_taken(per_minute, now))
        return max(0.0, missing) * 60 / per_minute

    def take(self, amount: float, per_minute: int | None, now: float) -> None:
        """Takes it in any case; a negative amount gives back."""
        if per_minute is None:
            self.taken = 0.0
            return
        self.taken = max(0.0, self._still_taken(per_minute, now) + amount)
        self.at = now

    def _still_taken(self, per_minute: int, now: float) -> float:
        return max(0.0, self.taken - max(0.0, now - self.at) * per_minute / 60)


class Tenant:
    """One tenant's limits and what it has used. `name` is its metric label."""

    def __init__(self, name: str, limits: TenantLimits, expected_answer_tokens: int) -> None:
        self.name = name
        self.limits = limits
        self.open_requests = 0
        self._requests = Bucket()
        self._tokens = Bucket()
        self._expected_answer_tokens = expected_answer_tokens
        self._answer_tokens = RecentMean(_REMEMBERED)
        self._duration_s = RecentMean(_REMEMBERED)

    @property
    def share(self) -> Share:
        return Share(self.name, self.limits.weight, self.limits.priority)

    def check(self, now: float, tokens: int = 1) -> None:
        """Raises LimitReached when a request of so many tokens cannot be accepted now; changes nothing."""
        limits = self.limits
        if limits.max_concurrent is not None and self.open_requests >= limits.max_concurrent:
            wait_s = (self._duration_s.value or _UNKNOWN_WAIT_S) / limits.max_concurrent
            raise LimitReached(self.name, "max_concurrent", limits.max_concurrent, wait_s)
        for name, bucket, amount, per_minute in (
            ("requests_per_minute", self._requests, 1, limits.requests_per_minute),
            ("tokens_per_minute", self._tokens, tokens, limits.tokens_per_minute),
        ):
            if per_minute is not None and (wait_s := bucket.wait_s(amount, per_minute, now)) > 0:
                raise LimitReached(self.name, name, per_minute, wait_s)

    def admit(self, prompt_tokens: int, max_tokens: int, now: float, *, is_sibling: bool = False) -> "Charge":
        """Charges one request; raises as `check`. A sibling (another answer of an accepted request) is charged with its answer
        alone and never refused: half of a client's answers would help nobody."""
        answer_tokens = min(max_tokens, round(self._answer_tokens.value or self._expected_answer_tokens))
        charge = Charge(self, 0 if is_sibling else prompt_tokens, answer_tokens, 0 if is_sibling else 1, now)
        if not is_sibling:
            self.check(now, charge.tokens)
        self._take(charge.requests, charge.tokens, now)
        self.open_requests += 1
        return charge

    def settle(self, charge: "Charge", answer_tokens: int, was_computed: bool, is_whole: bool, now: float) -> None:
        """See `Charge.settle`."""
        self.open_requests -= 1
        if was_computed:
            self._take(0, answer_tokens - charge.answer_tokens, now)
        else:
            self._take(-charge.requests, -charge.tokens, now)
        if is_whole:
            self._answer_tokens.add(answer_tokens)
            self._duration_s.add(now - charge.at)

    def _take(self, requests: int, tokens: int, now: float) -> None:
        self._requests.take(requests, self.limits.requests_per_minute, now)
        self._tokens.take(tokens, self.limits.tokens_per_minute, now)


@dataclass(frozen=True)
class Charge:
    """What an accepted request was charged with, and whom."""

    tenant: Tenant
    prompt_tokens: int
    answer_tokens: int
    requests: int
    at: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def settle(self, answer_tokens: int, was_computed: bool, is_whole: bool, now: float) -> None:
        """The request has ended; call once. What no worker computed is given back. Whole answers say what the tenant's next one
        may be expected to take."""
        self.tenant.settle(self, answer_tokens, was_computed, is_whole, now)


class Tenants:
    """Every configured tenant. Callers of any other share the one named "default", so metric labels stay bounded."""

    def __init__(self, limits: Mapping[str, TenantLimits], expected_answer_tokens: int) -> None:
        self._configured = dict(limits)
        self._expected_answer_tokens = expected_answer_tokens
        self._tenants: dict[str, Tenant] = {}
        self.set_limits({})

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def set_limits(self, limits: Mapping[str, TenantLimits]) -> None:
        """Limits that win over the configured ones, in place of those set before. What was used stays used."""
        wanted = {ANONYMOUS.tenant: TenantLimits(), **self._configured, **limits}
        for name, each in wanted.items():
            if (tenant := self._tenants.get(name)) is not None:
                tenant.limits = each
            else:
                self._tenants[name] = Tenant(name, each, self._expected_answer_tokens)
        for name in self._tenants.keys() - wanted.keys():
            del self._tenants[name]

    def of(self, caller: Caller) -> Tenant:
        return self._tenants.get(caller.tenant) or self._tenants[ANONYMOUS.tenant]
