"""Real people in the place of the simulated ones of benchmarks/cycle.py.

    cfgen preprocess --manifest ixi.csv --out prepared
    python benchmarks/cycle_ixi.py --out build/ixi --manifest prepared/manifest.csv \
        --simulated build/cycle --source plain
    python benchmarks/cycle_latents.py --out build/ixi
    python benchmarks/cycle.py more --out build/ixi --name ldm --source plain --mean plain
    python benchmarks/cycle.py cycle --out build/ixi --name cycle --source ldm
    python benchmarks/cycle_mean.py --out build/ixi --split val
    python benchmarks/cycle_compare.py make --out build/ixi --split val --names real copy ldm cycle

OUT then holds what a folder of simulated people does: prepared scans with age and sex, volumes (mL)
as the shipped segmenter reads them, the autoencoder of the simulated people and `--source`, so that
their latents mean the same, and the shipped judge. Without --simulated both are the shipped bundle,
OUT/default. Nobody knows the truth of a counterfactual here.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from aud_people import measured
from cycle_autoencoder import DEFAULT
from cycle_latents import AUTOENCODER
from cycle_people import write
from scm import STRUCTURES

from cfgen.bundle import copy_bundle, read_bundle
from cfgen.config import DEFAULT_GRID
from cfgen.data.conditions import default_schema
from cfgen.train.cohort import read_cohort, training_schema


def volumes(image: np.ndarray) -> dict[str, str]:
    """mL of what simulated people have, as the shipped segmenter reads it."""
    torch.set_num_threads(1)
    found = measured(image.astype(np.float32), "cpu")
    return {name: f"{found[region] / 1000:.4f}" for name, region in STRUCTURES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--simulated", type=Path)
    parser.add_argument("--source", help="A bundle of the simulated people.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    options = parser.parse_args()
    out, manifest = options.out, options.manifest
    out.mkdir(parents=True, exist_ok=True)
    images, table = [], []
    for split in ("train", "val"):
        cohort = read_cohort(manifest, default_schema(), DEFAULT_GRID, split)
        images.extend(cohort.images.numpy())
        for row in cohort.rows:
            about = {"number": str(len(table)), "subject": row.subject, "split": split}
            values = {"age": str(row.values["age"]), "male": str(int(row.values["sex"] == "M"))}
            table.append({**about, "made": "1", **values})
    with ProcessPoolExecutor(options.workers) as pool:
        table = [line | more for line, more in zip(table, pool.map(volumes, images), strict=True)]
    np.save(out / "images.npy", np.stack(images))
    write(table, out / "people.csv")
    shipped = read_bundle(DEFAULT)
    if options.simulated is None:
        for name in (AUTOENCODER, "default"):
            copy_bundle(shipped, out / name)
    else:
        schema = training_schema(manifest, ())
        for name in (AUTOENCODER, options.source):
            bundle = read_bundle(options.simulated / name)
            copy_bundle(replace(bundle, schema=schema), out / name)
    copy_bundle(replace(shipped, parts={"judge": shipped.part("judge")}), out / "judge")


if __name__ == "__main__":
    main()
