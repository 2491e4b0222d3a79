"""The modules of benchmarks/, which is a folder of scripts, not a package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import floor
import measuring
import peers
import performance_tables
import report
import results

__all__ = ["floor", "measuring", "peers", "performance_tables", "report", "results"]
