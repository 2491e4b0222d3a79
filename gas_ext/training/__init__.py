"""Learning a solver: gradient descent on its numbers, through the whole solve (GS and GAS, arXiv 2510.17699).

The target is the teacher's sample from the same noise; GAS adds a discriminator. Nothing of the network is
trained. `train_solver` works on tensors in memory; `train` makes a run in a folder, with checkpoints, logs
and pictures, which resumes where it was stopped.
"""

from gas_ext._utils.progress import make_reporter
from gas_ext.training.in_memory import train_solver
from gas_ext.training.logs import read_log
from gas_ext.training.run import TrainingResult, train
from gas_ext.training.settings import TrainingConfig, TrainingSummary
from gas_ext.training.validation import Validation

__all__ = [
    "TrainingConfig",
    "TrainingResult",
    "TrainingSummary",
    "Validation",
    "make_reporter",
    "read_log",
    "train",
    "train_solver",
]
