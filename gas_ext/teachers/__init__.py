"""Networks to sample from: the demo teacher, EDM, LDM and Stable Diffusion checkpoints, diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas_ext._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from gas_ext.teachers.demo import (
        DemoFeatures,
        DemoTeacher,
        load_demo_features,
        load_demo_statistics,
        load_demo_teacher,
    )
    from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig
    from gas_ext.teachers.diffusers import from_diffusers

__all__ = [
    "DemoFeatures",
    "DemoNetwork",
    "DemoNetworkConfig",
    "DemoTeacher",
    "from_diffusers",
    "load_demo_features",
    "load_demo_statistics",
    "load_demo_teacher",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DemoFeatures": "gas_ext.teachers.demo",
        "DemoNetwork": "gas_ext.teachers.demo_network",
        "DemoNetworkConfig": "gas_ext.teachers.demo_network",
        "DemoTeacher": "gas_ext.teachers.demo",
        "from_diffusers": "gas_ext.teachers.diffusers",
        "load_demo_features": "gas_ext.teachers.demo",
        "load_demo_statistics": "gas_ext.teachers.demo",
        "load_demo_teacher": "gas_ext.teachers.demo",
    },
)
