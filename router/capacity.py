"""Whether one more request can be accepted. Changes nothing and does no I/O."""

from router.config import RouterConfig
from router.open_requests import OpenRequests
from router.request import Request
from router.shedding import Shed, ShedReason, shed
from router.tenants.fair_queue import Share
from router.waiting_line import WaitingLine


class Capacity:
    """For requests that come to the door. Who has been accepted and lost its worker is not asked again."""

    def __init__(self, config: RouterConfig, open_requests: OpenRequests, line: WaitingLine) -> None:
        self._config = config
        self._open = open_requests
        self._line = line

    def check(self, share: Share, left_s: float, total_tokens: int = 0, *, is_sibling: bool = False) -> Request | None:
        """Who has to leave the line so that one more of this share can be accepted; None: nobody. Raises Shed.

        `left_s`: until its deadline. `total_tokens`: of its prompt and longest answer; 0 while they are not known. A sibling
        follows a request that was let in: half of a client's answers would help nobody.
        """
        config = self._config
        if len(self._open) >= config.max_open_requests:
            raise self._full(ShedReason.MAX_OPEN_REQUESTS, f"{len(self._open)} requests are open (max_open_requests)")
        if config.shedding == "predicted_wait" and not is_sibling:
            longest_s = config.queue_timeout_s if config.max_predicted_wait_s is None else config.max_predicted_wait_s
            if (refusal := shed(self._line.prospect(share, total_tokens), longest_s, left_s)) is not None:
                raise refusal
        if self._open.waiting < config.max_waiting:
            return None
        displaced = self._line.displaced_by(share)
        if displaced is None:
            raise self._full(ShedReason.MAX_WAITING, f"{config.max_waiting} requests are waiting (max_waiting)")
        return displaced

    def _full(self, reason: ShedReason, what: str) -> Shed:
        return Shed(reason, f"{what}; a retry can help", self._line.retry_after_s)
