"""Damaged and hostile files of every format: each loads, or is refused in one sentence that names it.

``pytest -m fuzz`` runs it; FUZZ_CASES is the number of cases per format (300), FUZZ_SEED their seed (0).
Each case must end within seconds and take little more memory than the file, whatever its header claims.
"""

import faulthandler
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from formats import FORMATS

CASES, SEED = int(os.environ.get("FUZZ_CASES", "300")), int(os.environ.get("FUZZ_SEED", "0"))
SECONDS = 10.0
MEGABYTES = 300


class TookTooLong(BaseException):
    pass


def resident(field: str) -> float:
    """Megabytes of memory of this process: VmRSS now, or VmHWM at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def stop(*_):
    raise TookTooLong


def fault_of(load, path: Path) -> str | None:
    """Return a fault of reading a file, "refused" for a proper refusal, or None if it was loaded."""
    forget_peak()
    before = resident("VmRSS")
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    found = None
    try:
        load(path)
    except TookTooLong:
        return f"took more than {SECONDS} s"
    except Exception as error:
        found = fault_of_error(error, path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = resident("VmHWM") - before
    return f"took {grown:.0f} MB" if grown > MEGABYTES else found


def fault_of_error(error: Exception, path: Path) -> str:
    cls, text = type(error), str(error)
    if cls not in (ValueError, FileNotFoundError) and not cls.__module__.startswith("gas_ext"):
        return f"raises {cls.__module__}.{cls.__name__}: {text[:200]}"
    if "\n" in text or len(text) > 1000 or not text.endswith((".", ")")) or path.name[:5] not in text:
        return f"says {text[:300]!r}"
    return "refused"


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_in_one_sentence(name, tmp_path, capsys):
    form = FORMATS[name]()
    torch.manual_seed(SEED)
    (tmp_path / "intact").mkdir()
    intact = form.make(tmp_path / "intact")
    form.load(intact)  # which imports what it needs
    assert fault_of(form.load, intact) is None
    signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(3000, exit=True, file=sys.__stderr__)
    counts, faults, start = {"loaded": 0, "refused": 0}, {}, time.monotonic()
    for number in range(max(CASES // form.cost, 1)):
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        shutil.copytree(tmp_path / "intact", tmp_path / "case")
        path = tmp_path / "case" / intact.relative_to(tmp_path / "intact")
        try:
            form.damage(random.Random(f"{SEED} {name} {number}"), path)
        except (RecursionError, ValueError, TypeError, OverflowError, RuntimeError, AttributeError):
            continue  # cannot be written
        fault = fault_of(form.load, path)
        if fault in (None, "refused"):
            counts["refused" if fault else "loaded"] += 1
        else:
            faults.setdefault(fault[:80], f"case {number} {fault}")
    faulthandler.cancel_dump_traceback_later()
    with capsys.disabled():
        seconds = time.monotonic() - start
        print(f"\n{name:18} {sum(counts.values()):6} cases, {counts}, {seconds:.0f} s", end="")
    assert not faults, "\n".join(faults.values())
