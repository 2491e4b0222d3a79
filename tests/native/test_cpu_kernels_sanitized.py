"""The CPU kernels under AddressSanitizer with UBSan, and under ThreadSanitizer, for each instruction set."""

from __future__ import annotations

import os
import subprocess

import pytest

from gas_ext.ops import info

pytestmark = pytest.mark.native

CASES = 6 * 11 * 4  # dtypes, sizes, variants


BUILD = info()["build"]


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
@pytest.mark.parametrize("name", BUILD.get("cpu_isas_compiled", []))
def test_no_report_and_the_same_bits(cpu_kernels, sanitizer, name):
    if name not in BUILD["cpu_isas_supported"]:
        pytest.skip(f"this processor cannot run {name}")
    result = subprocess.run(
        # Addresses as they are by default: on some systems their random part is too wide for TSan's shadow.
        ["setarch", "-R", cpu_kernels(sanitizer)],
        env={**os.environ, "GAS_EXT_CPU_ISA": name, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"{name}: {CASES} cases\n"
    assert result.stderr == ""
