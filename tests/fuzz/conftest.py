"""Makes the helpers of other test folders importable; they write the files of each format."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [
    str(TESTS / part) for part in ("samples", "training/discriminators", "teachers/edm", "teachers/ldm")
]
