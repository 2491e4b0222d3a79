"""Training a solver by gradient descent through the whole solve (GS and GAS, arXiv 2510.17699).

The target is the teacher's sample from the same noise; GAS adds a discriminator. The network itself is not
trained. `train_solver` works on tensors in memory; `train` makes a run in a folder, with checkpoints, logs
and pictures, which can be interrupted and resumed.
"""

from gas_ext._utils.progress import make_reporter
from gas_ext.training.in_memory import train_solver
from gas_ext.training.logs import read_log
from gas_ext.training.run import TrainingResult, train
from gas_ext.training.settings import TrainingConfig, TrainingSummary
from gas_ext.training.trainer import Validation

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
