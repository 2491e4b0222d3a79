import math

import numpy as np
import pytest

from gas_ext.configs import load_config
from gas_ext.training import TrainingConfig
from gas_ext.training.plan import make_plan


def test_a_config_without_a_rate_means_the_defaults():
    assert make_plan(load_config("demo")).training_config == TrainingConfig()
    assert load_config("demo").training.start == "fitted"


def test_a_config_with_a_rate_means_the_published_recipe():
    config = load_config("ffhq")
    assert make_plan(config, "gas").training_config == TrainingConfig(
        iterations=10_000,
        batch_size=24,
        **dict.fromkeys(("time_rate", "offset_rate", "coefficient_rate"), 1e-3),
        scale_rates=False,
        optimizer="adam",
        betas=(0.9, 0.999),
        warmup=0,
        schedule="constant",
        loss="lpips",
        clip=1.0,
        ema=0.999,
    )
    assert config.training.start == "published"


def test_every_setting_of_the_iterations_can_be_configured():
    settings = {
        "optimizer": "adam",
        "betas": [0.5, 0.6],
        "schedule": "constant",
        "warmup": 7,
        "ema": 0.5,
        "clip": 2.0,
        "accumulation": 2,
        "recompute": True,
        "autocast": "bfloat16",
        "max_rejected": 3,
        "seed": 9,
        "time_rate": 1e-4,
        "loss": "huber",
    }
    overrides = [f"training.{name}={value}" for name, value in settings.items()]
    config = load_config("demo", ["training.iterations={gs: 3, gas: 4}", *overrides])
    assert make_plan(config, "gas").training_config == TrainingConfig(iterations=4, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("batch_size", 0),
        ("warmup", -1),
        ("time_rate", -1.0),
        ("offset_rate", math.inf),
        ("coefficient_rate", math.nan),
        ("optimizer", "sgd"),
        ("schedule", "linear"),
        ("loss", "lpip"),
        ("ema", 1.0),
        ("clip", 0.0),
        ("accumulation", 0),
        ("max_rejected", 0),
        ("autocast", "float32"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}: "):
        TrainingConfig(**{name: value})


def test_numbers_of_numpy_are_numbers():
    config = TrainingConfig(seed=np.int64(3), time_rate=np.float32(0.5), betas=[0.5, 0.9])
    assert config == TrainingConfig(seed=3, time_rate=0.5, betas=(0.5, 0.9))
