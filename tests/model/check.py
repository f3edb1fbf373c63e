"""Checks tests/model/kv_landing.pml with Spin: the protocol must hold, and each mutant of it must not.

python tests/model/check.py                the whole, minutes on two cores (`make model`)
python tests/model/check.py --tiny         small bounds, seconds
python tests/model/check.py --trace NAME   how a mutant comes to its violation, step by step

Ends with 0 only when every run came out as expected and was searched to its end. Needs spin and a C compiler, and nothing else.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("kv_landing.pml")

AT_ONCE = 2
RUN_TIMEOUT_S = 900.0
MEMORY_MB = 1900
"""Of one run; two go at once."""
MOST_STEPS = 20_000

REUSE = "-DLEASES=2"
SMALL_REUSE = "-DLEASES=2 -DLAYERS=1"
TWO_LIVES = "-DDECODE_LIVES=2 -DLEASES=1"
RESTART = f"{TWO_LIVES} -DLAYERS=1"
ONE = "-DLEASES=1 -DLAYERS=1"
FENCES_ALONE = "-DNO_DIGEST -DPUMP_PROVES -DFENCE"


@dataclass(frozen=True)
class Run:
    """One search: the model under `defines` must hold, or (a mutant) must be shown not to."""

    name: str
    defines: str
    holds: bool
    is_liveness: bool = False
    is_tiny: bool = False
    """Part of --tiny too."""

    @property
    def is_quick(self) -> bool:
        """Ends within seconds: a violation is found early."""
        return self.is_tiny or not self.holds


RUNS = (
    Run("as built: the slot is leased again, either side may die", REUSE, True),
    Run("as built: ... with writes of one layer", SMALL_REUSE, True, is_tiny=True),
    Run("as built: ... three times over", "-DLEASES=3 -DLAYERS=1", True),
    Run("as built: both sides come back in another life", RESTART, True),
    Run("as built: ... with writes of two layers", f"{TWO_LIVES} -DDUPLICATES=0 -DBREAKS=0", True),
    Run("the fences alone, no digest (a pump that proves)", f"{REUSE} {FENCES_ALONE}", True),
    Run("the digest alone, no fence", f"{SMALL_REUSE} -DNO_QUIESCE", True),
    Run("every request ends", f"{ONE} -DCHECK_REQUESTS", True, is_liveness=True),
    Run("every slot returns, also where nobody can tell", f"{ONE} -DCHECK_SLOTS", True, is_liveness=True),
    Run("verified before the copy", f"{SMALL_REUSE} -DVERIFY_FIRST", False, is_tiny=True),
    Run("no quiescing and no digest", f"{SMALL_REUSE} -DNO_QUIESCE -DNO_DIGEST", False, is_tiny=True),
    Run("peers known by name alone", f"{RESTART} -DNAMES_ALONE", False, is_tiny=True),
    Run("the copy not locked against a cancel", f"{SMALL_REUSE} -DCOPY_UNLOCKED", False),
    Run("fences alone, an abort answered by address", f"{SMALL_REUSE} {FENCES_ALONE} -DABORT_BY_ADDRESS", False),
    Run("fences alone, a lease that opens again", f"{SMALL_REUSE} {FENCES_ALONE} -DOPENS_AGAIN", False),
    Run("fences alone, a lost connection forgotten", f"{SMALL_REUSE} {FENCES_ALONE} -DFORGETS", False),
    Run("fences alone, a slot freed by time", f"{SMALL_REUSE} {FENCES_ALONE} -DFREED_BY_TIME", False),
    Run("fences alone, a retired slot's memory used again", f"{SMALL_REUSE} {FENCES_ALONE} -DSAME_MEMORY", False, is_tiny=True),
    Run("fences alone, leases that name no zone", f"{SMALL_REUSE} {FENCES_ALONE} -DZONELESS", False),
    Run("a wait without a deadline", f"{ONE} -DCHECK_REQUESTS -DWAITS_FOREVER", False, is_liveness=True),
    Run("a quarantine that asks once", f"{ONE} -DCHECK_SLOTS -DASKS_ONCE -DRETIRES=0", False, is_liveness=True, is_tiny=True),
)


@dataclass(frozen=True)
class Result:
    run: Run
    states: int
    depth: int
    seconds: float
    problem: str | None
    """None: as expected."""

    def __str__(self) -> str:
        found = "holds" if self.run.holds else "violated, as it must be"
        told = f"{found if self.problem is None else 'NOT AS EXPECTED: ' + self.problem}"
        return f"{self.run.name:58} {self.states:>10,} states  depth {self.depth:>3}  {self.seconds:5.1f} s  {told}"


def explore(run: Run, folder: Path) -> str:
    """What the search printed; builds it in `folder` first. Raises CalledProcessError, TimeoutExpired."""
    defines = run.defines.split() + (["-DLIVENESS"] if run.is_liveness else [])
    kind = ["-DNFAIR=3"] if run.is_liveness else ["-DSAFETY"]
    shutil.copy(MODEL, folder)
    called(["spin", "-a", *defines, MODEL.name], folder)
    # A search of seconds is over before an optimising compiler is.
    optimise = "-O0" if run.is_quick else "-O2"
    called(["cc", optimise, "-w", f"-DMEMLIM={MEMORY_MB}", *kind, "-o", "pan", "pan.c"], folder)
    # Weak fairness: a process that always could take a step takes one. -E: to stand still for good is no error by itself.
    search = ["-a", "-f"] if run.is_liveness else ["-E"]
    return called(["./pan", f"-m{MOST_STEPS}", *search], folder)


def called(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, timeout=RUN_TIMEOUT_S, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode(errors="replace")


def judge(run: Run, printed: str, seconds: float) -> Result:
    """Whether a search came out as expected, by what it printed."""
    states, depth, errors = (
        int(found.group(1)) if (found := re.search(pattern, printed)) else -1
        for pattern in (r"(\d+) states, stored", r"depth reached (\d+)", r"errors: (\d+)")
    )
    problem = None
    if errors < 0 or "max search depth too small" in printed:
        problem = "the search was not completed: " + printed.strip()[-300:]
    elif run.holds and errors:
        problem = "a violation: " + next((line for line in printed.splitlines() if line.startswith("pan:1:")), "")
    elif run.holds and "Search not completed" in printed:
        problem = "the search was not completed"
    elif not run.holds and not errors:
        problem = "no violation was found"
    elif run.holds and not run.is_liveness and (idle := steps_never_taken(printed)) and run.defines in (REUSE, SMALL_REUSE):
        problem = f"steps of the model that were never taken: {idle}"
    return Result(run, states, depth, seconds, problem)


def steps_never_taken(printed: str) -> list[str]:
    """Of the model's processes, which never end: a step that cannot be taken would prove nothing about itself."""
    return [
        line.strip() for line in printed.splitlines() if "kv_landing.pml:" in line and "-end-" not in line and "state" in line
    ]


def check(run: Run) -> Result:
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kv-landing-") as folder:
        try:
            printed = explore(run, Path(folder))
        except subprocess.TimeoutExpired:
            return Result(run, -1, -1, time.monotonic() - started_s, f"no end after {RUN_TIMEOUT_S:g} s")
        except subprocess.CalledProcessError as error:
            printed = error.stdout.decode(errors="replace")
    return judge(run, printed, time.monotonic() - started_s)


def trace(run: Run) -> None:
    with tempfile.TemporaryDirectory(prefix="kv-landing-") as folder:
        explore(run, Path(folder))
        defines = run.defines.split() + (["-DLIVENESS"] if run.is_liveness else [])
        print(called(["spin", "-t", "-p", "-g", *defines, MODEL.name], Path(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="only what takes seconds")
    parser.add_argument("--trace", metavar="NAME", help="show a mutant's violation; NAME: a part of its name")
    arguments = parser.parse_args()
    for tool, how in (("spin", "Debian and Ubuntu: apt-get install spin; macOS: brew install spin"), ("cc", "a C compiler")):
        if shutil.which(tool) is None:
            print(f"the model cannot be checked: {tool} is missing ({how})", file=sys.stderr)
            return 2
    if arguments.trace:
        for run in RUNS:
            if arguments.trace in run.name and not run.holds:
                trace(run)
        return 0
    runs = [run for run in RUNS if run.is_tiny or not arguments.tiny]
    started_s = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = []
        for result in pool.map(check, runs):
            print(result, flush=True)
            results.append(result)
    wrong = [result for result in results if result.problem is not None]
    states = sum(result.states for result in results if result.states > 0)
    print(f"{states:,} states in {time.monotonic() - started_s:.0f} s")
    print(f"{len(results) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
