"""What goes wrong, and when: answers that are errors, answers that never come, a server that dies in the middle."""

import threading
from dataclasses import dataclass, field

from tests.apiserver.errors import ApiError


@dataclass
class Fault:
    """Of requests with this method whose path ends so. `after`: of how many that still go well; `times`: how often; `code`: the
    answer's, 0 for none at all within `hang_s`, -1 for a connection that is cut. `also_dry`: dry runs count, too."""

    method: str
    path: str
    code: int
    message: str = "injected"
    after: int = 0
    times: int = 1_000_000
    hang_s: float = 30.0
    also_dry: bool = False


@dataclass
class Faults:
    """The faults that are on, and the requests that came."""

    on: list[Fault] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def meet(self, method: str, path: str, is_dry: bool) -> None:
        """Raises what is on for this request: ApiError, or ConnectionAbortedError for no answer."""
        if not is_dry:
            self.requests.append((method, path))
        for fault in self.on:
            if method != fault.method or (not path.endswith(fault.path) and fault.path not in path):
                continue
            if is_dry and not fault.also_dry:
                continue
            if fault.after:
                fault.after -= 1
                continue
            if not fault.times:
                continue
            fault.times -= 1
            if fault.code == 0:
                self.ended.wait(fault.hang_s)
                raise ConnectionAbortedError
            if fault.code == -1:
                raise ConnectionAbortedError
            raise ApiError(fault.code, fault.message)
