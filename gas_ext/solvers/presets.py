"""Presets of learned solvers: which parameters of a `GeneralizedSolver` are trained.

The learned baselines (LD3, S4S) differ from GS only in what they fix, so each is a setting of the same
solver, trained by the same command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gas_ext._utils.records import shown

TIMES, OFFSETS = "timestep_logits", "time_offsets"
DATA, STATE = "data_corrections", "state_corrections"

PresetName = Literal["gs", "ld3", "learned-times", "s4s", "s4s-alt"]


@dataclass(frozen=True)
class Preset:
    """One preset of a learned solver.

    Parameters
    ----------
    title : str
        Name in tables.
    learned : tuple of str
        The parameters that are trained; the others keep their initial values.
    free : bool or None
        Whether the data weights are free of the theory; None accepts both.
    about : str
        Description and source.
    """

    title: str
    learned: tuple[str, ...]
    free: bool | None
    about: str


PRESETS: dict[str, Preset] = {
    "gs": Preset(
        "GS",
        (TIMES, OFFSETS, DATA, STATE),
        None,
        "times, offsets and corrections to DPM-Solver++ (arXiv 2510.17699); GAS with the adversarial loss",
    ),
    "ld3": Preset(
        "LD3",
        (TIMES, OFFSETS),
        False,
        "times of DPM-Solver++ and, decoupled, the times of its network evaluations (Tong et al. 2025)",
    ),
    "learned-times": Preset(
        "DPM-Solver++ with learned times", (TIMES,), False, "times of DPM-Solver++ alone"
    ),
    "s4s": Preset(
        "S4S",
        (DATA,),
        True,
        "weights of a linear multistep method on fixed times, free of theory (Frankel et al. 2025)",
    ),
    "s4s-alt": Preset(
        "S4S-Alt",
        (TIMES, OFFSETS, DATA),
        True,
        "the weights of S4S together with times and offsets (Frankel et al. 2025, who alternate)",
    ),
}


def get_preset(name: str) -> Preset:
    """Return a preset by its name; ValueError if there is none.

    Examples
    --------
    >>> get_preset("ld3").learned
    ('timestep_logits', 'time_offsets')
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"There is no preset {shown(name)}; expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]
