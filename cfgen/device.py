"""Where and in which number type the networks run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from cfgen.errors import UsageError
from cfgen.processes import count_here, number_here

Net = TypeVar("Net", bound=nn.Module)


def pick_device(name: str) -> torch.device:
    """'auto' is the first CUDA device where there is one, else the CPU; of several processes on a
    machine each has a CUDA device of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and count_here() > 1:
        name = f"cuda:{number_here()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("--device", f"'{name}'", "auto, cpu, cuda, cuda:N or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}
    count["mps"] = int(torch.backends.mps.is_available())
    if (device.index or 0) >= count.get(device.type, 0):
        raise UsageError("--device", f"no {device} device on this machine", fix="use --device cpu")
    return device


@cache
def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are faster than fp32 ones there.

    On a GPU from Ampere on, on a CPU only with AMX or AVX512-BF16 units; elsewhere bf16 is emulated
    and many times slower.
    """
    if device.type == "cuda":
        # is_bf16_supported() is true of emulation as well, and asks the current device alone.
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def number_type(device: torch.device) -> Literal["bf16", "fp32"]:
    """What the networks compute in on a device, for provenance; weights and results are fp32."""
    return "bf16" if fast_bf16(device) else "fp32"


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 where it is fast, fp32 elsewhere."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """fp32 again, inside `autocast`."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def channels_last(net: Net, device: torch.device) -> Net:
    """The network on a device, in the memory order in which 3D convolutions are fastest."""
    # torch's stubs do not know that Module.to takes a memory format.
    net.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net
