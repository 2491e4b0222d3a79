"""Memory of a training solve, counted without computing anything.

The network runs once on the "meta" device, where tensors have shapes but no elements, and what autograd would
save for the backward pass is added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from gas_ext._utils.optional import require
from gas_ext._utils.torch_private import storage_id
from gas_ext.configs import Config
from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig
from gas_ext.teachers.edm.teacher import build_teacher


class _FusedAttention(torch.autograd.Function):
    """Attention whose fused kernels save inputs and output, but not the matrix of weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("Memory is counted in the forward pass alone.")


class _WithFusedAttention(TorchFunctionMode):
    """Replaces attention by the fused one: on "meta", torch itself would build the matrix of weights."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            names = ("query", "key", "value")
            named = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            return _FusedAttention.apply(*(named[name] for name in names))
        return function(*args, **(kwargs or {}))


def activation_bytes(evaluate: Callable[[], Any], network: nn.Module) -> int:
    """Return the bytes that autograd saves in one evaluation, without the network's own parameters.

    Examples
    --------
    >>> layer = nn.Linear(10, 10, device="meta")
    >>> x = torch.empty(4, 10, device="meta", requires_grad=True)
    >>> activation_bytes(lambda: layer(x).exp(), layer)  # the input, for the weight, and the exponential
    320
    """
    own = {storage_id(tensor.untyped_storage()) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage_id(storage) not in own:
            saved[storage_id(storage)] = storage
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor), _WithFusedAttention():
        evaluate()
    return sum(storage.nbytes() for storage in saved.values())


def meta_network(config: Config) -> nn.Module:
    """Build the teacher's network of a config on the "meta" device, frozen.

    ValueError if the config does not describe it, ImportError if it needs diffusers, which is missing.
    """
    if config.teacher.kind == "embedded":
        with torch.device("meta"):
            return DemoNetwork(DemoNetworkConfig()).requires_grad_(False)
    architecture = config.teacher.architecture
    if architecture is None:
        raise ValueError(f"The config {config.name} does not describe its network; set teacher.architecture.")
    if config.teacher.kind == "edm":
        channels, height, width = config.space.shape
        with torch.device("meta"):
            return build_teacher("EDMPrecond", architecture, (channels, height, width)).network
    arguments = {name: value for name, value in architecture.items() if name != "network"}
    network_class = getattr(require("diffusers", "diffusers"), architecture["network"])
    with torch.device("meta"):
        network: nn.Module = network_class(**arguments).requires_grad_(False)
    return network


def _evaluate(config: Config, network: nn.Module) -> None:
    """Evaluate the network of `meta_network` once, on a training batch."""
    guided = config.teacher_solver.guidance_scale is not None
    batch = config.training.batch_size * (2 if guided else 1)
    x = torch.empty(batch, *config.space.shape, device="meta", requires_grad=True)
    t = torch.empty(batch, device="meta", requires_grad=True)
    width = (config.teacher.architecture or {}).get("cross_attention_dim")
    if width is not None:
        tokens = 77 if config.conditions.kind == "prompt" else 1
        context = torch.empty(batch, tokens, width, device="meta")
        network(x, t, encoder_hidden_states=context)
    elif config.teacher.kind == "embedded":
        network(x, t.double(), torch.empty(batch, dtype=torch.int64, device="meta"))
    else:
        network(x, t)


def training_bytes(config: Config, evaluations: int) -> dict[str, int]:
    """Estimate the bytes of one GS iteration with this many network evaluations, in float32.

    By use: "weights" (of the denoiser), "activations" (saved for the backward pass), "history" (states and
    data predictions), and their "total". Workspaces of kernels, the loss's network and the discriminator are
    not counted. ValueError and ImportError as for `meta_network`.
    """
    network = meta_network(config)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    activations = evaluations * activation_bytes(lambda: _evaluate(config, network), network)
    state = 4 * config.training.batch_size * math.prod(config.space.shape)
    history = (2 * evaluations + 1) * state
    return {
        "weights": weights,
        "activations": activations,
        "history": history,
        "total": weights + activations + history,
    }
