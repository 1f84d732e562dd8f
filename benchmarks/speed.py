"""Number type and memory order of the networks, and MONAI's modules beside ours: time ratios.

    python benchmarks/speed.py --bundle cfgen/bundles/default

Every variant runs in turn, five rounds; the medians are divided by that of fp32 in the usual
memory order (MONAI's module where there is a twin of the same widths). Random weights: time does
not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import nn

from cfgen.bundle import read_bundle, tuples
from cfgen.config import GRIDS
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.unet import UNet, UNetConfig

ROUNDS = 5
ORDERS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def variants(net: nn.Module, call: Callable[[nn.Module, torch.Tensor], object], x: torch.Tensor):
    """Name -> a function that runs the network once in that number type and memory order."""
    for (order, layout), (name, dtype) in product(ORDERS.items(), TYPES.items()):

        def run(layout: torch.memory_format = layout, dtype: torch.dtype = dtype) -> None:
            net.to(memory_format=layout)  # type: ignore[call-overload]
            with torch.inference_mode(), torch.autocast("cpu", dtype, dtype != torch.float32):
                call(net, x.contiguous(memory_format=layout))

        yield f"{name} {order}", run


def monai_unet(config: UNetConfig) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        channels=config.channels,
        attention_levels=config.attention,
        num_res_blocks=config.res_blocks,
        num_head_channels=config.head_channels,
        norm_num_groups=config.norm_groups,
        with_conditioning=True,
        cross_attention_dim=config.context_dim,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    bundle = read_bundle(parser.parse_args().bundle)
    torch.manual_seed(0)
    coder = Autoencoder(
        AutoencoderConfig(**tuples(bundle.part("autoencoder").config["net"]))
    ).eval()
    config = UNetConfig(**tuples(bundle.part("unet").config["net"]))
    unet, twin = UNet(config).eval(), monai_unet(config).eval()
    shape = GRIDS[bundle.preprocess.grid][0]
    image = torch.rand(1, 1, *shape)
    z0 = torch.randn(1, config.in_channels, *(n // coder.config.factor for n in shape))
    # MONAI's network needs edges that can be halved at every level.
    padded = torch.nn.functional.pad(z0, [v for n in z0.shape[:1:-1] for v in (0, -n % 4)])
    t, context = torch.tensor([500]), torch.randn(1, 2, config.context_dim or 1)

    def step(net: nn.Module, zt: torch.Tensor) -> object:
        return net(zt, t, context)

    tasks = {
        "encode": dict(variants(coder, lambda net, x: net.encode(x), image)),
        "decode": dict(variants(coder, lambda net, x: net.decode(x), z0)),
        "denoise": dict(variants(unet, step, padded)),
    }
    usual = dict(variants(twin, step, padded))["fp32 contiguous"]
    tasks["denoise"] = {"MONAI fp32 contiguous": usual} | tasks["denoise"]
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS + 1):
        for task, runs in tasks.items():
            for name, run in runs.items():
                run()  # changes of memory order and first calls stay out of the time
                started = time.perf_counter()
                run()
                if number:
                    times.setdefault((task, name), []).append(time.perf_counter() - started)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for task, runs in tasks.items():
        first = statistics.median(times[task, next(iter(runs))])
        for name in runs:
            median = statistics.median(times[task, name])
            print(f"{task:8} {name:24} {median:7.3f} s  {first / median:5.2f} x")


if __name__ == "__main__":
    main()
