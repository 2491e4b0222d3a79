"""The emulated kernels in each build, compiled once and cached."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import emulation_build
import pytest
from emulation_cases import Case

WORKER = Path(__file__).with_name("emulation_worker.py")


class SanitizerReport(RuntimeError):
    """A sanitizer stopped the process; the text is its report."""


class SanitizedKernels:
    """The module of a sanitized build, run in a process that has loaded the sanitizer first."""

    def __init__(self, build: str) -> None:
        self.module = emulation_build.build(build)
        self.command, self.environment = emulation_build.sanitized_python(build)

    def run(self, requests: list[dict]) -> list[dict]:
        """Answer all requests in one process: {"result": ...} or {"error": ...} each."""
        done = subprocess.run(
            [*self.command, str(WORKER), str(self.module)],
            input="\n".join(map(json.dumps, requests)),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(replies) != len(requests):
            at = requests[len(replies)] if len(replies) < len(requests) else "the end"
            raise SanitizerReport(f"exit code {done.returncode} at {at}\n{done.stderr}")
        return replies

    def digests(self, runs: list[tuple[str, Case, int]]) -> list[str]:
        """Run (direction, case, order) triples and return the hashes of their results."""
        requests = [
            {"direction": direction, "case": asdict(case), "order": order} for direction, case, order in runs
        ]
        replies = self.run(requests)
        errors = [
            (request, reply) for request, reply in zip(requests, replies, strict=True) if "error" in reply
        ]
        assert not errors, errors[0]
        return [reply["result"] for reply in replies]


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """Return the plain build, in this process."""
    return emulation_build.load(emulation_build.build("plain"))


@pytest.fixture(scope="session")
def sanitized() -> Callable[[str], SanitizedKernels]:
    """Return a function from "asan" or "tsan" to the kernels of that build."""
    made: dict[str, SanitizedKernels] = {}

    def get(build: str) -> SanitizedKernels:
        if build not in made:
            made[build] = SanitizedKernels(build)
        return made[build]

    return get
