"""Make `cfgen/causal/tables/nichart_centiles.csv` from NiChart's centile tables.

    python benchmarks/normative_table.py --data PATH/tables [--check]

NiChart (https://github.com/CBICA/NiChart_Project) has centiles 5, 25, 50, 75 and 95 of DLMUSE
volumes by year of age, 40 to 93 (men: 92), of cognitively normal people: of women, of men, of both,
and of both at one head size. cfgen's structures are not all in it. Where NiChart has the structure
itself, or a composite of the same voxels, that is taken. Else parts are added:

    q_p(sum) = sum_i q_50,i +- sqrt(d' R d),   d_i = |q_p,i - q_50,i|,

R the correlations of the parts' logarithms between people of one age and sex (IXI, without the
scans of `split=val`): exact for jointly normal parts, the sum of the centiles for R = 1, and each
side keeps its own skew. `--check` adds up what NiChart also has as a composite and prints how far
that is off, and how far the shipped table, by interpolation, is from the file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from cfgen.causal.centiles import AGES, CENTILES, FILE, SIZE_TO_MM3, centile

FILES = {"F": "CN-Females", "M": "CN-Males", "all": "CN", "size": "CN-ICVNorm"}
LAST = int(AGES[-1])


def sides(name: str) -> list[str]:
    return [f"{name}_L", f"{name}_R"]


# Structure -> NiChart's names, added where there are several. As the DLMUSE table of
# `cfgen/data/tables/dlmuse.csv` has it; checked on IXI, where both are measured: equal.
PARTS = {
    "lateral_ventricle": sides("LateralVentricle"),
    "inferior_lateral_ventricle": sides("InfLatVentricle"),
    "third_ventricle": ["3rdVentricle"],
    "fourth_ventricle": ["4thVentricle"],
    "hippocampus": sides("Hippocampus"),
    "amygdala": sides("Amygdala"),
    "thalamus": sides("ThalamusProper"),
    "caudate": sides("Caudate"),
    "putamen": sides("Putamen"),
    "pallidum": sides("Pallidum"),
    "accumbens": sides("AccumbensArea"),
    "other_brain": sides("VentralDC") + sides("BasalForebrain"),
    "brainstem": ["BrainStem"],
    "cerebellum_gm": sides("CerebellumExterior")
    + [f"CerebellarVermalLobules_{part}" for part in ("1to5", "6to7", "8to10")],
    "cerebellum_wm": sides("Cerebellum_WM"),
    "cerebral_wm": [
        *(f"{lobe}_WM" for lobe in ("Frontal", "Parietal", "Temporal", "Occipital")),
        "Deep_WM",
        "CorpusCallosum",
    ],
    "cortex_frontal": [
        f"Frontal{part}_GM" for part in ("Inferior", "Lateral", "Medial", "Opercular")
    ],
    "cortex_parietal": ["Parietal_GM"],
    "cortex_temporal": ["Temporal_GM", "LimbicMedialTemporal_GM"],
    "cortex_occipital": ["Occipital_GM"],
    "cortex_cingulate": ["LimbicCingulate_GM"],
    "cortex_insula": ["FrontalInsular_GM"],
    "cortex": [f"{lobe}_GM" for lobe in ("Frontal", "Parietal", "Temporal", "Occipital", "Limbic")],
    "brain": ["TotalBrain"],
}
# What NiChart has, and what it can be added of: how good is the addition?
COMPOSITES = {
    "Ventricles": ["3rdVentricle", "4thVentricle", "Ventricle_L", "Ventricle_R"],
    "Frontal_GM": sides("Frontal_GM"),
    "Temporal_GM": [f"Temporal{part}_GM" for part in ("Inferior", "Lateral", "SupraTemporal")],
    "BasalGanglia": [
        name for part in ("Caudate", "Putamen", "Pallidum", "AccumbensArea") for name in sides(part)
    ],
    "Deep_GM": sides("ThalamusProper"),
    "Ventricle_L": ["LateralVentricle_L", "InfLatVentricle_L"],
    "Cerebellum": PARTS["cerebellum_gm"] + PARTS["cerebellum_wm"],
}
# Where the dictionary and the centile files spell otherwise.
SPELLING = {"Ventricles_L": "Ventricle_L"}


def read_centiles(path: Path) -> dict[str, np.ndarray]:
    """Name -> (ages from 40, centiles)."""
    rows: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = [float(row[f"centile_{p}"]) for p in CENTILES]
            rows.setdefault(row["VarName"], {})[int(row["Age"])] = values
    return {name: np.array([by_age[a] for a in sorted(by_age)]) for name, by_age in rows.items()}


def read_people(data: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """DLMUSE volumes by NiChart's names, ages and sexes (1 man) of IXI without its val."""
    with (data / "nichart" / "muse_dict.csv").open(newline="") as file:
        names = {r["Code"].removeprefix("MUSE_"): r["Name"] for r in csv.DictReader(file)}
    with (data.parent / "ixi" / "participants.csv").open(newline="") as file:
        held_out = {r["subject"] for r in csv.DictReader(file) if r["split"] == "val"}
    with (data / "ixi" / "IXI_DLMUSE_277_no_heldout.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["ixi"].split("-")[0] not in held_out]
    volumes = {}
    for code, name in names.items():
        plain = name.removesuffix("_DUPLICATE")
        # 'Frontal_Inferior_GM' of the dictionary is 'FrontalInferior_GM' of the centiles.
        if code.startswith("3") and len(code) == 3:
            plain = plain.replace("_", "", 1).replace("Supratemporal", "SupraTemporal")
            plain = plain.replace("LimbicMedial_Temporal", "LimbicMedialTemporal")
        plain = SPELLING.get(plain, plain)
        if code in rows[0]:
            volumes[plain] = np.array([float(r[code]) for r in rows])
    age = np.array([float(r["Age"]) for r in rows])
    male = np.array([r["Sex"].upper().startswith("M") or r["Sex"] == "1" for r in rows], float)
    return volumes, age, male


def correlations(
    people: dict[str, np.ndarray], features: np.ndarray, parts: list[str]
) -> np.ndarray:
    """(parts, parts) of log volumes, given the features (n, F)."""
    logs = np.log(np.stack([np.maximum(people[p], 1.0) for p in parts], 1))
    rest = logs - features @ np.linalg.lstsq(features, logs, rcond=None)[0]
    return np.atleast_2d(np.corrcoef(rest.T))


def added(table: dict[str, np.ndarray], parts: list[str], r: np.ndarray) -> np.ndarray:
    """Centiles (ages, centiles) of a sum of parts with correlations `r`."""
    q = np.stack([table[p] for p in parts])
    middle = q[:, :, 2:3]
    d = np.abs(q - middle)
    spread = np.sqrt(np.einsum("iac,ij,jac->ac", d, r, d))
    return middle.sum(0) + np.sign(np.array(CENTILES) - 50) * spread


def make(data: Path) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """(structure, kind) -> (years, centiles), and NiChart's own tables."""
    tables = {
        kind: read_centiles(data / "nichart" / f"dlmuse_centiles_{name}.csv")
        for kind, name in FILES.items()
    }
    people, age, male = read_people(data)
    decades = (age - 60) / 10
    features = np.stack([np.ones_like(age), decades, decades**2, male], 1)
    size = np.log(people["ICV"])[:, None]
    made = {}
    for kind, table in tables.items():
        # At one head size the parts are less alike.
        given = np.hstack([features, size]) if kind == "size" else features
        for structure, parts in PARTS.items():
            made[structure, kind] = added(table, parts, correlations(people, given, parts))
        for name, parts in COMPOSITES.items():
            made[f"check {name}", kind] = added(table, parts, correlations(people, given, parts))
    return made, tables


def write(made: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["structure", "kind", "age", *(f"centile_{p}" for p in CENTILES)])
        for (structure, kind), values in made.items():
            if structure.startswith("check "):
                continue
            for age in AGES:
                row = values[int(age) - 40]
                writer.writerow([structure, kind, f"{age:g}", *(f"{v:.5g}" for v in row)])


def check(
    made: dict[tuple[str, str], np.ndarray], tables: dict[str, dict[str, np.ndarray]]
) -> None:
    print("| composite of NiChart | kind | largest error of the added median | of 5 and 95 (%) |")
    print("|---|---|---|---|")
    for name in COMPOSITES:
        for kind in FILES:
            off = made[f"check {name}", kind] / tables[kind][name] - 1
            print(
                f"| {name} | {kind} | {100 * np.abs(off[:, 2]).max():.1f} "
                f"| {100 * np.abs(off[:, [0, 4]]).max():.1f} |"
            )
    print("\n| structure | largest distance of the shipped table from the file (centiles) |")
    print("|---|---|")
    for structure, parts in PARTS.items():
        worst = 0.0
        for kind in FILES:
            for age in range(40, LAST + 1):
                for p, v in zip(CENTILES, made[structure, kind][age - 40], strict=True):
                    sex, tiv = (None, SIZE_TO_MM3) if kind == "size" else (kind, None)
                    sex = None if sex == "all" else sex
                    found = centile(structure, sex, age, float(v), tiv)
                    assert found is not None
                    worst = max(worst, abs(found - p))
        how = "as in NiChart" if len(parts) == 1 else f"{len(parts)} parts added"
        print(f"| {structure} ({how}) | {worst:.2f} |")
    sizes = [
        tables["size"][n][:, 2] / tables["all"][n][:, 2] * tables["size"]["ICV"][:, 2]
        for n in tables["all"]
        if n in tables["size"]
    ]
    print(f"\nhead size of the ICV-normalised table: {np.median(sizes):.0f} mm3, ", end="")
    print(f"by year {np.median(sizes, 0).min():.0f} to {np.median(sizes, 0).max():.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    table, sources = make(arguments.data)
    if arguments.check:
        check(table, sources)
    else:
        write(table, Path(str(FILE)))
