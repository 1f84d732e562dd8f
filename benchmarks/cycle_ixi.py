"""The diffusion model of benchmarks/cycle.py on real brains, from its weights and from scratch.

    python benchmarks/cycle_ixi.py --out build/cycle --manifest prepared/manifest.csv --source big
    python benchmarks/cycle_ixi.py --out build/cycle --manifest prepared/manifest.csv

Scans are those that `cfgen preprocess` wrote of IXI, with splits. The autoencoder is that of the
simulated people, so that a latent means the same. Prints the age that the shipped judge reads.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from cycle_autoencoder import DEFAULT
from cycle_latents import AUTOENCODER
from cycle_table import counterfactuals, direct, figures, show

from cfgen.bundle import copy_bundle, read_bundle
from cfgen.config import LATENT_DIFFUSION_FIT, Edit
from cfgen.data.conditions import default_schema
from cfgen.edit.latent import load_models
from cfgen.jobs.train_latent_diffusion import train_latent_diffusion
from cfgen.measure.judge import load_judge
from cfgen.metrics.image import psnr
from cfgen.train.cohort import read_cohort, training_schema
from cfgen.train.latent_diffusion import LATENT_DIFFUSION

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--source")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=LATENT_DIFFUSION_FIT.learning_rate)
    parser.add_argument("--shift", type=float, default=8.0)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--people", type=int, default=31)
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out: Path = options.out
    start = replace(read_bundle(out / AUTOENCODER), schema=training_schema(options.manifest, ()))
    start = copy_bundle(start, out / "ixi-autoencoder")
    name = f"ixi-{options.source or 'scratch'}"
    fit = replace(
        LATENT_DIFFUSION_FIT,
        steps=options.steps,
        learning_rate=options.rate,
        report_every=500,
    )
    how = replace(
        LATENT_DIFFUSION,
        schedule=replace(LATENT_DIFFUSION.schedule, shift=options.shift),
        latent_mean=False,
        latent_scale="all",
        conditioning="both",
        positions=True,
        channels=tuple(options.channels),
    )
    init = out / options.source if options.source else None
    if not (out / name / "unet.safetensors").exists():
        train_latent_diffusion(options.manifest, start.path, out / name, fit, "cpu", how, init)
    bundle = read_bundle(out / name)
    models, judges = load_models(bundle, CPU), load_judge(read_bundle(DEFAULT), CPU)
    val = read_cohort(options.manifest, default_schema(), bundle.preprocess.grid, "val")
    images, rows = val.images[: options.people].float(), val.rows[: options.people]
    latents = torch.cat([models.encode(x[None, None]) for x in images])
    decoded = torch.cat([models.decode(z[None])[:, 0] for z in latents])
    ages = torch.tensor([float(r.values["age"]) for r in rows]).numpy()
    dbs = [
        psnr(a.numpy(), b.numpy(), (b > 0).numpy()) for a, b in zip(decoded, images, strict=True)
    ]
    print(f"PSNR of the autoencoder on val: {sum(dbs) / len(dbs):.2f} dB")
    lines = [
        {"what": "real", "task": "val"} | figures(ages, judges.judge(images)["age"]),
        {"what": "autoencoder", "task": "val"} | figures(ages, judges.judge(decoded)["age"]),
    ]
    edit = Edit(steps=25, depth=1.0, guidance=options.guidance)
    asked = [
        (z, {"age": float(r.values["age"]), "sex": r.values["sex"]})
        for z, r in zip(latents, rows, strict=True)
    ]
    found = [
        direct(models, bundle.schema, judges, options.n, 50, options.guidance),
        *counterfactuals(models, bundle.schema, judges, asked, edit),
    ]
    lines += [{"what": name} | line for line in found]
    show(lines, out / f"{name}-{options.guidance:g}.csv")


if __name__ == "__main__":
    main()
