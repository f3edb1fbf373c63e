"""What the slice shares with the tests of clusters and of the transport."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS / "cluster"), str(TESTS / "integration")]
