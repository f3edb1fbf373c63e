"""How a benchmark's command begins and ends, whichever it is: what it takes, what interrupts it, what it leaves behind.

def run(model: ModelFolder = None, setting: Settings = None, json_file: JsonFile = None) -> None:
    measurement = Measurement("fairness")
    phases: list[Phase] = []
    with measurement.running():
        asyncio.run(_measure(read_settings(model, setting or []), phases))
    measurement.end(FairnessReport(machine=measurement.machine, phases=phases), render, json_file)
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, Protocol, TypeVar

import typer
from rich.console import RenderableType

from benchmarks.errors import NotMeasured
from benchmarks.paired import Machine, Verdict
from benchmarks.terminal import result_console

EXIT_MISSED = 1
EXIT_FAILED = 2

ModelFolder = Annotated[Path | None, typer.Option(help="Hugging Face folder. Default: the embedded model.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the cluster.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report here as JSON.")]


class Report(Protocol):
    """A pydantic model of what was measured."""

    def verdicts(self) -> Sequence[Verdict]:
        """The targets that this run says something about."""

    def model_dump_json(self, *, indent: int) -> str: ...


ReportType = TypeVar("ReportType", bound=Report)


class Measurement:
    """One run of a benchmark's command.

    Ctrl-C and SIGTERM end what `running` encloses, so that the processes it started go; what was measured until then is
    reported all the same. The exit status is 0 when every target is met, EXIT_MISSED when one is not, EXIT_FAILED when it could
    not be measured.
    """

    def __init__(self, name: str, *, takes_time: bool = True) -> None:
        """Looks at the machine before anything is started, and says on stderr when it is too busy to be trusted. `takes_time`
        False: what is measured does not depend on the machine."""
        self.machine = Machine.here()
        self._name = name
        self._problem: str | None = None
        if takes_time and (warning := self.machine.warning()):
            print(warning, file=sys.stderr)
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Ends at NotMeasured and when interrupted, which `end` then says. A bug is raised as it is."""
        try:
            yield
        except NotMeasured as error:
            self.failed(str(error))
        except KeyboardInterrupt:
            self.failed("interrupted")

    def failed(self, problem: str) -> None:
        """What is measured is not to be trusted as a whole. Of several problems the first is told."""
        self._problem = self._problem or problem

    def count_errors(self, errors: Sequence[str], whose: str = "requests") -> None:
        """It failed when there are any: no target is met by leaving out what went wrong."""
        if errors:
            self.failed(f"{len(errors)} {whose} failed, the first: {errors[0]}")

    def end(self, report: ReportType, render: Callable[[ReportType], RenderableType], json_file: Path | None) -> NoReturn:
        """Shows the report on stdout, writes it, and ends the command."""
        result_console().print(render(report))
        if json_file is not None:
            json_file.write_text(report.model_dump_json(indent=2) + "\n")
        if self._problem is not None:
            print(f"{self._name}: {self._problem}", file=sys.stderr)
            raise typer.Exit(EXIT_FAILED)
        raise typer.Exit(0 if all(verdict.met for verdict in report.verdicts()) else EXIT_MISSED)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Of an option like `--streams 1,8`. Raises typer.BadParameter naming it."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a list of whole numbers like 1,8") from None
    if min(found) < 1:
        raise typer.BadParameter(f"{option}: each number must be at least 1")
    return found
