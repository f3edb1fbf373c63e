"""Another process's processor time, as the kernel counts it."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.processor_time import processor_seconds


def test_it_is_what_the_process_itself_would_say() -> None:
    before_s = time.process_time()
    found_s = processor_seconds([os.getpid()])
    assert before_s <= found_s <= time.process_time()


def test_processes_add_up_and_sleep_costs_nothing() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ntime.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            spent_s = processor_seconds([child.pid])
            assert 0.2 <= spent_s < 1
            assert processor_seconds([child.pid, os.getpid()]) >= spent_s + time.process_time() - 0.1
        finally:
            child.kill()


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    with pytest.raises(ProcessLookupError):
        processor_seconds([child.pid])
