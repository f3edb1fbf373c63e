"""What the launcher shows while the cluster starts and runs: one progress bar per process, then plain lines."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from worker.spec import Progress as Report


class Display:
    """Progress bars on a terminal, lines elsewhere (a log file wants no bars). All on stderr: stdout is for the addresses."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.fields[name]:<10}"),
            TextColumn("{task.description:<30}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def reporter(self, name: str) -> Report:
        """Shows the progress of the process `name`."""

        def report(what: str, done: int, total: int) -> None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(what, name=name, total=None)
            self._bars.update(self._tasks[name], description=what, completed=done, total=total)
            if not self.console.is_terminal and self._last.get(name) != what:
                self._last[name] = what
                self.line(f"{name}: {what}")

        return report

    def finish(self, name: str) -> None:
        """`name` needs no bar any more."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))

    def stop_bars(self) -> None:
        """From here on only lines."""
        self._bars.stop()

    def line(self, text: str) -> None:
        """Prints one line as it is, above the bars."""
        self.console.print(text, markup=False, soft_wrap=True)
