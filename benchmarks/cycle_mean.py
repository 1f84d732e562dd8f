"""What needs no network, beside the models of benchmarks/cycle.py: scans, and the mean of latents.

    python benchmarks/cycle_mean.py --out build/cycle
    python benchmarks/cycle_compare.py make --out build/cycle --names real decoded copy ridge

`real` are people as they are and `decoded` their decoded latents, in the place of brains of nobody;
`copy` gives a scan back at every age. `ridge` is a regression of latents on age and sex: a person's
latent moves as the mean of people does, and a brain of nobody is the mean of its age and sex with
what is left over of a train person, drawn at random.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cycle import data_of, mean_of
from cycle_autoencoder import rows_of
from cycle_brains import make_changed, make_direct, save
from cycle_latents import AUTOENCODER
from cycle_people import read_people
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.data.conditions import default_schema, fit_schema
from cfgen.edit.latent import load_autoencoder
from cfgen.train.latent_diffusion import LATENT_DIFFUSION

CPU = torch.device("cpu")


def copied(image: Tensor, _: Tensor, others: Tensor) -> Tensor:
    return image.expand(1 + len(others), -1, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--n", type=int, default=40, help="New brains.")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--people", type=int, default=30, help="People who are changed.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = options.out
    people = read_people(out)
    schema = fit_schema(rows_of(people, "train")[: options.train], default_schema())
    data, _ = data_of(out, schema, options.train)
    mean = mean_of(data, schema, replace(LATENT_DIFFUSION, latent_mean=True, latent_scale="all"))
    autoencoder = load_autoencoder(read_bundle(out / AUTOENCODER), CPU)
    left_over = mean.residual(data.latents[:, 0].float(), data.conditions)

    def new(c: Tensor, draws: list[torch.Generator]) -> Tensor:
        picks = torch.cat([torch.randint(len(left_over), (1,), generator=g) for g in draws])
        return autoencoder.decode(mean.latent(left_over[picks], c))[:, 0]

    def moved(image: Tensor, c: Tensor, others: Tensor) -> Tensor:
        r = mean.residual(autoencoder.encode(image[None, None]).float(), c[None])
        return autoencoder.decode(mean.latent(r, torch.cat([c[None], others])))[:, 0]

    rows = people.rows(options.split)[: options.people].tolist()
    own = [people.values(n) for n in rows]
    images = torch.from_numpy(people.images[rows]).float()
    with torch.inference_mode():
        decoded = torch.cat([autoencoder.decode(autoencoder.encode(x[None, None])) for x in images])
    for name, some in (("real", images), ("decoded", decoded[:, 0])):
        age = np.array([v["age"] for v in own])
        female = np.array([float(v["sex"] == "F") for v in own])
        save(out / name / "direct.npz", images=some.half().numpy(), age=age, female=female)
    make_direct(out / "ridge", schema, options.n, new)
    make_changed(out / "ridge", people, schema, rows, moved)
    make_changed(out / "copy", people, schema, rows, copied)


if __name__ == "__main__":
    main()
