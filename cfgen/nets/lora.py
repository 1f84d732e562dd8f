"""Low-rank adaptation (Hu et al. 2021): W + B A beside frozen weights W.

A is random and B zero at the start, so that a network begins as it was. Merged, it is an ordinary
network of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cfgen.nets.blocks import TokenAttention

RANK = 4


class LowRank(nn.Module):
    """W (n, m) -> W + B A with A (rank, m) and B (n, rank)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        n, m = weight.shape
        rank = min(rank, n, m)
        # Drawn on the CPU: the same numbers on every device.
        self.A = nn.Parameter((torch.randn(rank, m) / m**0.5).to(weight.device))
        self.B = nn.Parameter(torch.zeros(n, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.B @ self.A


def adapted_layers(net: nn.Module) -> dict[str, nn.Linear]:
    """The layers that get one, by name: queries, keys, values and outputs of every attention."""
    return {
        f"{name}.{part}": getattr(module, part)
        for name, module in net.named_modules()
        if isinstance(module, TokenAttention)
        for part in ("to_q", "to_k", "to_v", "out_proj")
    }


def add_lora(net: nn.Module, rank: int = RANK) -> None:
    """Put adapters on `adapted_layers`; of the network's own weights nothing is changed."""
    for layer in adapted_layers(net).values():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merge_lora(net: nn.Module) -> None:
    """Make W + B A the weights, and take the adapters off."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
