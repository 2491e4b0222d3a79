"""Runs requests with a sanitized module: JSON lines in, JSON lines out.

A separate process, since a sanitizer must be loaded before the interpreter and ends the process with its
report. Started by conftest.py with the module's path as the argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from emulation_build import load
from emulation_cases import RUN, Case, digest


def answer(module, request: dict) -> object:
    module.set_order(request["order"])
    if "planted" in request:
        values = np.array(request["values"], dtype=np.float32)
        out = module.run_planted(
            request["planted"], request["broken"], values.view(np.uint8), request["outputs"]
        )
        return out.view(np.float32).tolist()
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in request["case"].items()
    }
    return digest(RUN[request["direction"]](module, Case(**fields)))


def main() -> None:
    module = load(Path(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": answer(module, request)}
        except module.EmulationError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
