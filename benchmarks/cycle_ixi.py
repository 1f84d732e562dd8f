"""Real people in the place of the simulated ones of benchmarks/cycle.py.

    cfgen preprocess --manifest ixi.csv --out prepared
    python benchmarks/cycle_ixi.py --out build/ixi --manifest prepared/manifest.csv \
        --simulated build/cycle --source plain
    python benchmarks/cycle_latents.py --out build/ixi
    python benchmarks/cycle.py more --out build/ixi --name ldm --source plain --mean plain
    python benchmarks/cycle.py cycle --out build/ixi --name cycle --source ldm
    python benchmarks/cycle_mean.py --out build/ixi --split val
    python benchmarks/cycle_compare.py make --out build/ixi --split val --names real copy ldm cycle

OUT then holds what a folder of simulated people does: prepared scans with age and sex, the
autoencoder of the simulated people and `--source`, so that their latents mean the same, and the
shipped judge. Nobody knows the truth of a counterfactual here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from cycle_autoencoder import DEFAULT
from cycle_latents import AUTOENCODER
from cycle_people import write

from cfgen.bundle import copy_bundle, read_bundle
from cfgen.config import DEFAULT_GRID
from cfgen.data.conditions import default_schema
from cfgen.train.cohort import read_cohort, training_schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--simulated", type=Path, required=True)
    parser.add_argument("--source", required=True, help="A bundle of the simulated people.")
    options = parser.parse_args()
    out, manifest = options.out, options.manifest
    out.mkdir(parents=True, exist_ok=True)
    images, table = [], []
    for split in ("train", "val"):
        cohort = read_cohort(manifest, default_schema(), DEFAULT_GRID, split)
        images.append(cohort.images.numpy())
        for row in cohort.rows:
            about = {"number": str(len(table)), "subject": row.subject, "split": split}
            values = {"age": str(row.values["age"]), "male": str(int(row.values["sex"] == "M"))}
            table.append({**about, "made": "1", **values})
    np.save(out / "images.npy", np.concatenate(images))
    write(table, out / "people.csv")
    schema = training_schema(manifest, ())
    for name in (AUTOENCODER, options.source):
        bundle = read_bundle(options.simulated / name)
        copy_bundle(replace(bundle, schema=schema), out / name)
    shipped = read_bundle(DEFAULT)
    copy_bundle(replace(shipped, parts={"judge": shipped.part("judge")}), out / "judge")


if __name__ == "__main__":
    main()
