"""Latents of the people of benchmarks/cycle.py, in chunks of a hundred.

    python benchmarks/cycle_latents.py --out build/cycle

Those who are not simulated yet are left for the next time. Several processes share the work, each
with its --part 0/4, 1/4, ...
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from cycle_people import People, read_people
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.data.conditions import Schema
from cfgen.device import pick_device
from cfgen.edit.latent import load_autoencoder
from cfgen.train.latents import cached_views

AUTOENCODER = "autoencoder-folded-32"
# A latent as it is, its mirror image, and warped ones.
CHUNK, VIEWS = 100, 3


def latents_of(out: Path, split: str) -> tuple[Tensor, list[int]]:
    """(N, views, C, d, h, w) float16 of a split, and the people's numbers."""
    people = read_people(out)
    numbers = [n for n, p in enumerate(people.table) if p["split"] == split]
    paths = sorted((out / "latents").glob(f"{split}-*.npy"))
    whole = torch.cat([torch.from_numpy(np.load(p)) for p in paths])
    numbers = numbers[: len(whole)]
    kept = [k for k, n in enumerate(numbers) if people.table[n]["made"] == "1"]
    return whole[kept], [numbers[k] for k in kept]


def conditions_of(people: People, schema: Schema, numbers: list[int]) -> Tensor:
    return torch.from_numpy(np.stack([schema.encode(people.values(n)) for n in numbers]))


def encode_all(out: Path, device: torch.device, part: int, parts: int) -> None:
    """Every `parts`-th chunk of a hundred people; those who are not there yet are left."""
    people = read_people(out)
    net = load_autoencoder(read_bundle(out / AUTOENCODER), device)
    for split, views in (("val", 1), ("test", 1), ("train", VIEWS)):
        numbers = [n for n, p in enumerate(people.table) if p["split"] == split]
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            if start // CHUNK % parts != part:
                continue
            if any(people.table[n]["made"] == "0" for n in chunk):
                break
            images = torch.from_numpy(people.images[chunk[0] : chunk[-1] + 1])
            path = out / "latents" / f"{split}-{start // CHUNK:02d}.npy"
            cached_views(net, images, views, device, chunk[0], path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", default="0/1", help="Which of how many processes this is.")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    encode_all(options.out, pick_device(options.device), part, parts)


if __name__ == "__main__":
    main()
