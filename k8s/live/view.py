"""What a person sees of a command that waits: a table that changes in place on a terminal, a line per change elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from k8s.live.readiness import ClusterState


class View:
    """A context: the table is there while it is entered. Everything goes to standard error, which leaves the output to results."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._told = ""

    def __enter__(self) -> "View":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def show(self, state: ClusterState) -> None:
        """The state as it is now."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, transient=False)
                self._live.start()
            self._live.update(table(state))
            return
        told = _in_words(state)
        if told != self._told:
            self._told = told
            self.line(told)


def table(state: ClusterState) -> Table:
    """Pools, and their pods that are not ready."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("pool", "ready", "what stands in the way"):
        found.add_column(name, overflow="fold")
    for pool in state.pools:
        found.add_row(pool.role, f"{pool.ready}/{pool.desired}", "\n".join(pool.why) or _draining(pool.pods))
    for reason in state.why:
        found.add_row("", "", reason)
    return found


def _draining(pods: tuple[object, ...]) -> str:
    count = sum(getattr(pod, "is_draining", False) for pod in pods)
    return f"{count} draining" if count else ""


def _in_words(state: ClusterState) -> str:
    pools = ", ".join(f"{pool.role} {pool.ready}/{pool.desired}" for pool in state.pools) or "no pool"
    return "; ".join([f"ready: {pools}", *state.why, *(reason for pool in state.pools for reason in pool.why)])
