"""EDM networks as teachers: from published snapshots, and from folders."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from gas_ext._utils.building import filled
from gas_ext.denoisers import Denoiser
from gas_ext.safe_pickle import PickledObject, printable, read_pickle, state_dict_of
from gas_ext.schedules import NoiseSchedule
from gas_ext.teachers.defaults import plain_defaults
from gas_ext.teachers.edm.networks import TRAINING_ONLY, build_network
from gas_ext.teachers.edm.preconditioning import PRECONDITIONINGS, PreconditionedNetwork

# Arguments of the published preconditioning classes that are not the network's.
_OUTER = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")

_WEIGHTS = "model.safetensors"


class EDMTeacher(Denoiser):
    """A preconditioned EDM network in the coordinates of a noise schedule; it predicts the clean sample.

    Frozen and in evaluation mode; gradients flow to x and t.

    Parameters
    ----------
    network : PreconditionedNetwork
        The denoiser D(y; sigma).
    image_shape : tuple of int
        (channels, height, width); images in [-1, 1].
    schedule : NoiseSchedule, optional
        Default: the EDM schedule for VE preconditioning, else the linear VP schedule of the GS/GAS paper,
        over the network's sigma range.
    name : str
        Identity of the teacher.
    t_eps : float
        Default end of sampling.
    dtype : torch.dtype, optional
        Dtype of the network's arithmetic: float16 or bfloat16 on a GPU. Default: that of its weights.
    architecture : dict, optional
        Arguments of the network, as for `build_teacher`; needed to save the teacher.

    Examples
    --------
    >>> from gas_ext.teachers.edm import SongUNet
    >>> raw = SongUNet(8, 3, 3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())
    >>> teacher = EDMTeacher(PreconditionedNetwork(raw, "EDMPrecond"), (3, 8, 8))
    >>> teacher(torch.randn(2, 3, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 3, 8, 8])
    """

    family = "edm"

    def __init__(
        self,
        network: PreconditionedNetwork,
        image_shape: tuple[int, int, int],
        *,
        schedule: NoiseSchedule | None = None,
        name: str = "edm",
        t_eps: float = 1e-3,
        dtype: torch.dtype | None = None,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        labels = network.label_dim
        super().__init__(
            schedule=schedule or default_schedule(network.preconditioning, t_eps),
            prediction_type="sample",
            sample_shape=image_shape,
            name=name,
            condition_kind="label" if labels else "none",
            num_classes=labels or None,
            t_eps=t_eps,
        )
        self.network = network
        self.dtype = dtype
        self.architecture = dict(architecture or {})
        self.requires_grad_(False).eval()

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the clean image; the label num_classes, like None, means "no label"."""
        batch, dtype = x.shape[0], next(self.network.parameters()).dtype
        t = t.to(device=x.device, dtype=torch.float64).expand(batch)
        alpha = self.schedule.alpha(t)
        labels = None
        if condition is not None and self.num_classes is not None:
            # One column more than classes, cut off: "no label" is the vector of zeros.
            one_hot = F.one_hot(condition.to(x.device).expand(batch), self.num_classes + 1)
            labels = one_hot[:, :-1].to(dtype)
        y = x.to(dtype) * (1.0 / alpha).to(dtype)[:, None, None, None]
        output: Tensor = self.network(y, self.schedule.sigma(t) / alpha, labels, dtype=self.dtype)
        return output.to(x.dtype)

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write model.safetensors; return how to rebuild the network."""
        if not self.architecture:
            raise ValueError(
                f"{self.name} was built by hand; pass architecture={{'network': ..., ...}} to save it."
            )
        tensors = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(tensors, folder / _WEIGHTS)
        return {
            "preconditioning": self.network.preconditioning,
            "image_shape": list(self.sample_shape),
            "architecture": self.architecture,
            "schedule": self.schedule.to_dict(),
            "t_eps": self.t_eps,
        }

    @classmethod
    def load_weights(cls, folder: Path, config: dict[str, Any]) -> EDMTeacher:
        """Rebuild what `save_weights` wrote."""
        return build_teacher(
            config["preconditioning"],
            config["architecture"],
            tuple(config["image_shape"]),
            weights=load_file(folder / _WEIGHTS),
            schedule=NoiseSchedule.from_dict(config["schedule"]),
            t_eps=config["t_eps"],
        )


def default_schedule(preconditioning: str, t_eps: float) -> NoiseSchedule:
    """Return the default schedule of a network with this preconditioning."""
    _, low, high, _ = PRECONDITIONINGS[preconditioning]
    if preconditioning == "VEPrecond":
        return NoiseSchedule.edm(low, high)
    if math.isinf(high):
        return NoiseSchedule.vp_linear(0.1, 20.0)
    return NoiseSchedule.vp_from_edm(low, high, t_eps)


def build_teacher(
    preconditioning: str,
    architecture: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    weights: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> EDMTeacher:
    """Build a teacher from its preconditioning, the arguments of its network and its weights.

    Parameters
    ----------
    preconditioning : str
        "VPPrecond", "VEPrecond" or "EDMPrecond".
    architecture : mapping
        "network": "SongUNet" or "DhariwalUNet", and its arguments, without channels and size.
    image_shape : tuple of int
        (channels, height, width).
    weights : mapping of str to Tensor, optional
        Copied. Default: random.
    **options
        Keyword arguments of `EDMTeacher`.

    Raises
    ------
    ValueError
        If there is no such network, or the weights are those of another one.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     teacher = build_teacher("EDMPrecond", {
    ...         "network": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9}, (3, 32, 32))
    >>> sum(parameter.numel() for parameter in teacher.parameters())
    55733891
    """
    channels, size = image_shape[0], image_shape[1]
    shape = {"img_resolution": size, "in_channels": channels, "out_channels": channels}
    arguments = {**architecture, **shape}
    name = arguments.pop("network")
    arguments.pop("img_channels", None)
    # On "meta", sizes that no weights fill take no memory.
    with nullcontext() if weights is None else torch.device("meta"):
        raw = build_network(name, **arguments)
        network = PreconditionedNetwork(raw, preconditioning, architecture.get("label_dim", 0))
    if weights is not None:
        network = filled(network, {key: value.to(torch.float32) for key, value in weights.items()})
    return EDMTeacher(network, image_shape, architecture=dict(architecture), **options)


@plain_defaults()
def load_edm_snapshot(path: str | os.PathLike[str], **options: Any) -> EDMTeacher:
    """Load the averaged weights of a published network-snapshot .pkl of EDM; nothing in the file is run.

    Parameters
    ----------
    path : path
        A pickle with an entry "ema", as at nvlabs-fi-cdn.nvidia.com/edm/pretrained.
    **options
        Keyword arguments of `EDMTeacher`.

    Raises
    ------
    ValueError
        If the file is refused (`gas_ext.safe_pickle`) or its network is unknown.
    FileNotFoundError
        If there is no such file.
    """
    content = read_pickle(path)
    record = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(record, PickledObject):
        raise ValueError(f"{path} is not an EDM snapshot: it has no network under 'ema'.")
    options = {"name": Path(path).stem, **options}
    try:
        architecture, image_shape = _description(record)
        weights = state_dict_of(record)
        return build_teacher(record.name, architecture, image_shape, weights=weights, **options)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error


def _description(record: PickledObject) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Return the arguments of the network in a pickled preconditioning, and the shape of its images."""
    if record.name not in PRECONDITIONINGS:
        raise ValueError(
            f"its network is of class {printable(record.name)}, but only {', '.join(PRECONDITIONINGS)} "
            "are supported"
        )
    arguments, positional = record.state.get("_init_kwargs"), record.state.get("_init_args")
    if not isinstance(arguments, dict) or not isinstance(positional, tuple) or positional:
        raise ValueError("it does not say how its network was built")
    constants = PRECONDITIONINGS[record.name].constants
    for name, known in constants.items():
        value = record.state.get(name, known)
        if type(value) not in (int, float):
            raise ValueError(f"its {name} is not a number")
        if value != known:
            raise ValueError(f"its {name} is {value}, but only {known} is supported")
    network = arguments.get("model_type", "SongUNet")
    if not isinstance(network, str):
        raise ValueError("the class of its network has no name")
    outer = (*_OUTER, *constants, *TRAINING_ONLY)
    architecture = {
        **{str(key): value for key, value in arguments.items() if key not in outer},
        "network": network,
        "label_dim": arguments.get("label_dim", 0),
    }
    channels: Any = arguments.get("img_channels")
    size: Any = arguments.get("img_resolution")
    return architecture, (channels, size, size)
