"""Options of how latents are edited, of the benchmarks that make counterfactuals."""

from __future__ import annotations

import argparse
from dataclasses import replace

from cfgen.config import EDIT, Edit, GuidedFrom


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=EDIT.steps)
    parser.add_argument("--depth", type=float, default=EDIT.depth)
    parser.add_argument("--guidance", type=float, default=1.0)


def sampling_of(options: argparse.Namespace, guidance_from: GuidedFrom = "masks") -> Edit:
    return replace(
        EDIT,
        steps=options.steps,
        depth=options.depth,
        guidance=options.guidance,
        guidance_from=guidance_from,
    )
