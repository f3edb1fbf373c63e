"""Where results and progress are shown: tables on stdout, bars on stderr and only on a terminal."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

WIDTH_IN_A_FILE = 132


def result_console() -> Console:
    """stdout. In a file or a pipe the tables keep their full width."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)


def progress_bar() -> Progress:
    """Gone when it is done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
