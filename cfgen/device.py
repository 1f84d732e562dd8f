"""Where and in which number type the networks run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cfgen.errors import UsageError

Net = TypeVar("Net", bound=nn.Module)


def pick_device(name: str) -> torch.device:
    """'auto' is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("--device", f"'{name}'", "auto, cpu, cuda, cuda:N or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    available["mps"] = torch.backends.mps.is_available()
    if not available.get(device.type, False):
        raise UsageError(
            "--device", f"no {device.type} device on this machine", fix="use --device cpu"
        )
    return device


@cache
def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are faster than fp32 ones there.

    On a CPU only with AMX or AVX512-BF16 units; elsewhere bf16 is emulated and many times slower.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def number_type(device: torch.device) -> str:
    """What the networks run in there: bf16 or fp32. Results differ a little between the two."""
    return "bf16" if fast_bf16(device) else "fp32"


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 where it is fast, fp32 elsewhere."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def channels_last(net: Net, device: torch.device) -> Net:
    """The network on a device, in the memory order in which 3D convolutions are fastest."""
    # torch's stubs do not know that Module.to takes a memory format.
    net.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net
