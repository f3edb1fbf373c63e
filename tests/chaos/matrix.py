"""The kill matrix: every process hit in every state of a request by every fault, on real processes.

    make chaos-matrix                                                  all cells, minutes; the report goes to chaos/
    PYTHONPATH=.:tests/cluster python tests/chaos/matrix.py --only "decode x decoding x SIGKILL" --out chaos

Each trial holds four requests (greedy and seeded, gRPC and HTTP, over two routers) in the state, sees by the workers' own words
that they are there, hits one process, and watches: every client's answer is compared with an undisturbed one's, every router's
outcomes are counted, every worker gets all of its blocks back. Several clusters run beside each other, one of them in network
namespaces. Ends with 0 only when every cell has run and passed.
"""

import argparse
import asyncio
import contextlib
import fnmatch
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matrix_report
from matrix_cells import LAYERS, Cell, Fault, cells
from matrix_cluster import MatrixCluster
from matrix_expected import Expected
from matrix_nursery import Nursery
from matrix_places import NotPermitted, Switch
from matrix_report import CellReport
from matrix_result import Trial
from matrix_trial import run_trial

from engine.tiny import write_tiny_llama

START_TRIES = 3
"""Clusters in a row that do not come up; then those who wait for one are not run."""


@dataclass
class Matrix:
    """What is to be done, and what has been."""

    out: Path
    deadline_s: float
    """time.monotonic() after which no trial begins."""
    queues: dict[bool, deque[tuple[Cell, int]]]
    """Whether it needs namespaces → trials that nobody has begun."""
    scratch: Path
    nursery: Nursery
    trials: list[Trial] = field(default_factory=list)
    not_run: dict[bool, str] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    total: int = 0
    _clusters: int = 0

    async def run(self, beside: int, switch: Switch | None) -> None:
        model = write_tiny_llama(self.scratch / "tiny", layers=LAYERS)
        expected = Expected(model)
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(min(beside, len(self.queues[False]))):
                    lanes.create_task(self._lane(False, model, expected, None))
                if switch is not None and self.queues[True]:
                    lanes.create_task(self._lane(True, model, expected, switch))
        finally:
            expected.close()

    async def _lane(self, in_namespaces: bool, model: Path, expected: Expected, switch: Switch | None) -> None:
        """Trials one after another, on one cluster for as long as it stays whole."""
        queue, cluster = self.queues[in_namespaces], None
        starts = START_TRIES
        try:
            while queue and starts and time.monotonic() < self.deadline_s:
                if cluster is None:
                    cluster = await self._start(model, switch)
                    starts = START_TRIES if cluster is not None else starts - 1
                    continue
                cell, repeat = queue.popleft()
                trial = await run_trial(cell, repeat, cluster, expected)
                self._note(trial)
                if trial.wrong:  # the next one gets another cluster, and this one's logs stay
                    self._keep_logs(cluster, trial)
                    await cluster.stop()
                    cluster = None
        finally:
            if cluster is not None:
                await cluster.stop()

    async def _start(self, model: Path, switch: Switch | None) -> MatrixCluster | None:
        """None when it did not come up."""
        self._clusters += 1
        cluster = MatrixCluster(self.nursery, model, self.scratch / f"cluster-{self._clusters}", switch)
        try:
            await cluster.start()
        except BaseException as error:
            await cluster.stop()
            if not isinstance(error, AssertionError):
                raise
            print(f"a cluster did not start: {error}", flush=True)
            return None
        return cluster

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        trial.number = len(self.trials)
        passed = f"{min(trial.recover_s):.2f} s" if trial.recover_s else "no time"
        what = f"FAILED: {trial.wrong[0][:160]}" if trial.wrong else f"hits {trial.hits}, recovered in {passed}"
        spent_s = time.monotonic() - self.began_s
        print(f"[{spent_s:5.0f} s, {trial.number}/{self.total}] {trial.cell} #{trial.repeat}: {what}", flush=True)

    def _keep_logs(self, cluster: MatrixCluster, trial: Trial) -> None:
        kept = self.out / "logs" / f"{trial.number:03d}"
        kept.mkdir(parents=True, exist_ok=True)
        for log in cluster.folder.glob("*.log"):
            shutil.copy(log, kept)

    def reports(self, wanted: list[Cell]) -> list[CellReport]:
        found = []
        for cell in wanted:
            trials = tuple(trial for trial in self.trials if trial.cell == cell)
            found.append(CellReport(cell, trials, self.not_run.get(_needs_namespaces(cell), "out of time")))
        return found


def main() -> int:
    arguments = argument_parser().parse_args()
    wanted = [cell for cell in cells() if any(fnmatch.fnmatch(str(cell), pattern) for pattern in arguments.only)]
    if not wanted:
        sys.exit(f"no cell is called {arguments.only}; they are called like: {next(cells())}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    trials = [(cell, repeat) for repeat in range(1, arguments.repeats + 1) for cell in wanted]
    queues = {needs: deque(one for one in trials if _needs_namespaces(one[0]) is needs) for needs in (False, True)}
    deadline_s = time.monotonic() + 60 * arguments.minutes
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="serval-matrix-") as scratch, Nursery() as nursery:
        matrix = Matrix(arguments.out, deadline_s, queues, Path(scratch), nursery, total=len(trials))
        with _switch(matrix, bool(queues[True])) as switch, contextlib.suppress(KeyboardInterrupt):
            asyncio.run(matrix.run(arguments.beside, switch))
        reports = matrix.reports(wanted)
        options = {"repeats": arguments.repeats, "beside": arguments.beside}
        matrix_report.write(arguments.out, reports, time.monotonic() - matrix.began_s, options)
    failed = [report for report in reports if report.wrong]
    allowed = [report for report in failed if arguments.without_network and report.not_run and not report.trials]
    print(f"{len(reports) - len(failed)} of {len(reports)} cells passed; {arguments.out / 'matrix.md'}")
    for report in failed:
        print(f"  {report.cell}: {report.wrong[0][:200]}")
    return 0 if len(failed) == len(allowed) else 1


@contextlib.contextmanager
def _switch(matrix: Matrix, is_needed: bool) -> Iterator[Switch | None]:
    """None where none is needed, or none may be made; then the matrix knows why."""
    switch = Switch()
    try:
        if is_needed:
            switch.__enter__()
    except NotPermitted as error:
        matrix.not_run[True] = f"needs CAP_NET_ADMIN: {error}"
        print(f"network cells are not run: {matrix.not_run[True]}", flush=True)
        is_needed = False
    try:
        yield switch if is_needed else None
    finally:
        if is_needed:
            switch.__exit__()


def _needs_namespaces(cell: Cell) -> bool:
    return cell.fault is Fault.NETWORK


def argument_parser() -> argparse.ArgumentParser:
    """What this command takes."""
    parser = argparse.ArgumentParser(prog="matrix.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("chaos"), help="folder for matrix.json, matrix.md and logs of failures"
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="cells by name, with * and ?")
    parser.add_argument("--repeats", type=int, default=2, help="trials of each cell")
    parser.add_argument("--beside", type=int, default=2, help="clusters beside each other, besides the one in namespaces")
    parser.add_argument("--minutes", type=float, default=25, help="no trial begins after so many")
    parser.add_argument(
        "--without-network", action="store_true", help="end with 0 although the network cells could not be run here"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
