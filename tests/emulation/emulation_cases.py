"""Cases that the emulated kernels run: their inputs from a seed, and the calls. NumPy only, no torch.

A bfloat16 array is held as its bits in uint16, since NumPy has no such type.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np

PAIRS = ("f64_f64", "f32_f32", "f32_f16", "f32_bf16", "f16_f16", "bf16_bf16")
SIZES = (0, 1, 3, 15, 16, 17, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097)
LARGE = 1_000_007
FIRST_WEIGHT = 5
STORAGE = {"f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.uint16}

Array = np.ndarray
Results = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One call of the update. `blocks` 0 takes the library's own grid."""

    dtypes: str
    numel: int
    terms: int = 3
    guided: bool = False
    next_input: str = ""  # "", "state" or "network": not requested, or its dtype
    double_coefficients: bool = True
    phases: tuple[int, ...] = (0,)  # tensor j starts phases[j % len] elements after an aligned address
    blocks: int = 0
    grads: tuple[str, ...] = ("data", "state", "next_input")  # incoming gradients
    wanted: tuple[str, ...] | None = None  # requested gradients; None: all
    seed: int = 0

    @property
    def state_dtype(self) -> str:
        return self.dtypes.split("_")[0]

    @property
    def network_dtype(self) -> str:
        return self.dtypes.split("_")[1]

    @property
    def next_dtype(self) -> str:
        return self.state_dtype if self.next_input == "state" else self.network_dtype

    @property
    def incoming(self) -> tuple[str, ...]:
        return tuple(name for name in self.grads if name != "next_input" or self.next_input)

    @property
    def outgoing(self) -> tuple[str, ...]:
        everything = ("output", "coefficients", *map(str, range(self.terms)))
        return everything if self.wanted is None else self.wanted


@dataclass(frozen=True)
class Inputs:
    """What a case is computed from, as stored."""

    history: list[Array]
    outputs: list[Array]  # m, and m_u with guidance
    coefficients: Array
    grads: dict[str, Array]
    state: Array  # x_{n+1} as the backward pass is given it


def encode(values: Array, dtype: str) -> Array:
    """Round float64 numbers to a dtype, bfloat16 by hand (to nearest, ties to even)."""
    if dtype != "bf16":
        return np.ascontiguousarray(values.astype(STORAGE[dtype]))
    bits = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def decode(array: Array, dtype: str) -> Array:
    """Return the numbers of an array of `dtype` as float64, exactly."""
    if dtype == "bf16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def make_inputs(case: Case) -> Inputs:
    generator = np.random.default_rng([case.seed, case.numel, case.terms])

    def tensor(dtype: str) -> Array:
        return encode(generator.standard_normal(case.numel), dtype)

    coefficients = generator.standard_normal(FIRST_WEIGHT + case.terms)
    return Inputs(
        history=[tensor(case.state_dtype) for _ in range(case.terms)],
        outputs=[tensor(case.network_dtype) for _ in range(2 if case.guided else 1)],
        coefficients=coefficients if case.double_coefficients else coefficients.astype(np.float32),
        grads={
            name: tensor(case.next_dtype if name == "next_input" else case.state_dtype)
            for name in case.incoming
        },
        state=tensor(case.state_dtype),
    )


def raw(array: Array) -> Array:
    return array.view(np.uint8)


def run_forward(module: ModuleType, case: Case, inputs: Inputs | None = None) -> Results:
    """Run the forward kernel; data, state and, if requested, next_input, as stored."""
    inputs = inputs or make_inputs(case)
    results = module.forward(
        case.dtypes,
        case.numel,
        [raw(h) for h in inputs.history],
        [raw(m) for m in inputs.outputs],
        raw(inputs.coefficients),
        case.next_input,
        list(case.phases),
        case.blocks,
    )
    dtypes = {"data": case.state_dtype, "state": case.state_dtype, "next_input": case.next_dtype}
    return {name: array.view(STORAGE[dtypes[name]]) for name, array in results.items()}


def run_backward(module: ModuleType, case: Case, inputs: Inputs | None = None) -> Results:
    """Run the backward kernels; the gradients that the case wants, as stored."""
    inputs = inputs or make_inputs(case)
    results = module.backward(
        case.dtypes,
        case.numel,
        {name: raw(grad) for name, grad in inputs.grads.items()},
        [raw(h) for h in inputs.history],
        [raw(m) for m in inputs.outputs],
        raw(inputs.state),
        raw(inputs.coefficients),
        case.next_input,
        list(case.outgoing),
        list(case.phases),
        case.blocks,
    )
    dtypes = {
        "output": STORAGE[case.network_dtype],
        "output_uncond": STORAGE[case.network_dtype],
        "coefficients": inputs.coefficients.dtype,
    }
    return {name: array.view(dtypes.get(name, STORAGE[case.state_dtype])) for name, array in results.items()}


RUN = {"forward": run_forward, "backward": run_backward}


def digest(results: Results) -> str:
    """Hash of names and bits, to compare runs in different processes."""
    hashed = hashlib.sha256()
    for name in sorted(results):
        hashed.update(name.encode())
        hashed.update(results[name].tobytes())
    return hashed.hexdigest()


def variants(case: Case) -> list[dict[str, object]]:
    """All combinations of next input, guidance and coefficient dtype, with terms and seed that vary."""
    terms = (1, 2, 3, 8, 9, 10, 17, 64)
    choices = [
        {"next_input": next_input, "guided": guided, "double_coefficients": double}
        for next_input in ("", "state", "network")
        for guided in (False, True)
        for double in (False, True)
    ]
    shift = case.numel + PAIRS.index(case.dtypes)
    return [
        {**choice, "terms": terms[(i + shift) % len(terms)], "seed": i} for i, choice in enumerate(choices)
    ]
