"""Tables 1 and 2 of CDM on simulated people, with a control and the truth beside them.

    python benchmarks/cycle_compare.py make --out build/cycle --names more-1 cycle-1
    python benchmarks/cycle_compare.py table --out build/cycle --control more --names cycle

`make` has every bundle generate brains of nobody (the same conditions and noise for all) and change
people of `--split`, and keeps a line a brain, a line an edit and a sheet in OUT/compare-G, G the
guidance. A judge of simulated brains reads an edit, which is also compared with the simulator's own
picture of that person at that age: `skill` of what is decoded, and with the residual of the scan
added, as the tool writes it (1 is the truth, 0 the scan as it is). `table` prints means with
intervals over people, seeds NAME-1, NAME-2, ... of a name together, and the difference to the
control, by person.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cycle_brains import DELTAS
from cycle_latents import latents_of
from cycle_made import changed, new_brains
from cycle_people import People, levelled, read_people
from matplotlib.image import imsave
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.config import DEFAULT_GRID, SEED, Edit
from cfgen.data.conditions import Schema, parse_interventions
from cfgen.device import pick_device
from cfgen.edit.latent import Models, load_models
from cfgen.errors import CfgenError
from cfgen.measure.judge import Judges, load_judge
from cfgen.metrics.distribution import frechet, frechet_floor, kernel_distance
from cfgen.metrics.msssim import COMPARABLE, choose_pairs, ms_ssim_pairs
from cfgen.metrics.statistics import Estimate, mean_over_people, ratio_over_people
from cfgen.metrics.truth import image_truth
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render

# SD of the simulator's noise in levelled brightness; what changes by less did not change.
NOISE = 0.02
PAIRS = 150
TRUTH = ("skill", "skill with residual", "slope of change", "leakage")
Line = dict[str, float | str]
# By person and years, (D, H, W).
Truths = dict[tuple[int, int], Tensor]
# Images (n, D, H, W), ages, and who is female.
New = tuple[Tensor, np.ndarray, np.ndarray]


def truth(subject: Subject, delta: int) -> np.ndarray | None:
    """(D, H, W) of a person so many years older; None where the volumes do not fit the folds."""
    asked = parse_interventions(cohort.schema(graph()), sets=[f"age={delta:+d}"])[0]
    try:
        other = cohort.counterfactual(graph(), subject, asked, PLAIN)
        return levelled(render(graph(), reference(DEFAULT_GRID), other, SEED))
    except CfgenError:
        return None


def truths(out: Path, people: People, numbers: Sequence[int], workers: int) -> Truths:
    """The images that are true then; they stay in OUT/truths."""
    folder = out / "truths"
    folder.mkdir(exist_ok=True)
    everybody = cohort.sample(graph(), cohort.preset("lifespan"), SEED, 0, len(people.table))
    ages = [people.values(n)["age"] for n in range(len(people.table))]
    wanted = [(n, d) for n in numbers for d in DELTAS if min(ages) <= ages[n] + d <= max(ages)]
    paths = {key: folder / f"{key[0]}_{key[1]:+d}.npy" for key in wanted}
    missing = [key for key in wanted if not paths[key].exists()]
    subjects, deltas = [everybody[n] for n, _ in missing], [d for _, d in missing]
    with ProcessPoolExecutor(workers) as pool:
        for key, image in zip(missing, pool.map(truth, subjects, deltas), strict=True):
            if image is not None:
                np.save(paths[key], image)
    there = [key for key in wanted if paths[key].exists()]
    return {key: torch.from_numpy(np.load(paths[key])).float() for key in there}


# Person, years of each edit, and images (1 + J, D, H, W), the first as a model gives the scan back.
Changed = Iterator[tuple[int, list[int], Tensor]]


def changed_by(
    models: Models, schema: Schema, people: People, latents: dict[int, Tensor], edit: Edit
) -> Changed:
    """People at other ages by a diffusion model, of their `latents` (C, d, h, w)."""
    for number, z0 in latents.items():
        ages, images = changed(models, schema, z0, people.values(number), edit)
        yield number, [round(age - ages[0]) for age in ages[1:]], images


def changed_in(folder: Path) -> Changed:
    """Those that a baseline made before, if it makes any."""
    if not (folder / "changed.npz").exists():
        return
    made = np.load(folder / "changed.npz")
    for number in dict.fromkeys(made["person"].tolist()):
        own = made["person"] == number
        deltas = np.rint(made["delta"][own]).astype(int).tolist()
        yield number, deltas[1:], torch.from_numpy(made["images"][own]).float()


def edits(people: People, judges: Judges, true: Truths | None, edited: Changed) -> Iterator[Line]:
    """A line for each edit; where truth is known, for each whose truth is."""
    for number, deltas, images in edited:
        values, guess = people.values(number), judges.judge(images)
        scan = torch.from_numpy(people.images[number].astype(np.float32))
        for k, delta in enumerate(deltas, 1):
            if true is not None and (number, delta) not in true:
                continue
            yield {
                "subject": str(number),
                "delta": delta,
                "age": values["age"] + delta,
                "read": float(guess["age"][k]),
                "change": float(guess["age"][k] - guess["age"][0]),
                "female": float(values["sex"] == "F"),
                "read female": float(guess["sex"][k]),
            } | ({} if true is None else against(scan, images[[0, k]], true[number, delta]))


def against(scan: Tensor, made: Tensor, truth: Tensor) -> Line:
    """How a scan (D, H, W) that is changed compares with the truth; `made` (2, D, H, W) as a model
    gives it back, and changed."""
    brain, written = (scan > 0).numpy(), scan + made[1] - made[0]
    plain, kept = (
        image_truth(scan.numpy(), x.numpy(), truth.numpy(), brain, NOISE)
        for x in (made[1], written)
    )
    values = plain.skill, kept.skill, kept.slope, kept.leakage
    return dict(zip(TRUTH, values, strict=True))


def new_in(folder: Path) -> New | None:
    """Brains of nobody that a baseline made before, if it makes any."""
    if not (folder / "direct.npz").exists():
        return None
    made = np.load(folder / "direct.npz")
    return torch.from_numpy(made["images"]).float(), made["age"], made["female"]


def new_lines(judges: Judges, new: New) -> list[Line]:
    """A line for each brain of nobody."""
    images, ages, female = new
    guess = judges.judge(images)
    return [
        {"subject": str(k), "age": a, "read": float(r), "female": float(f), "read female": float(s)}
        for k, (a, f, r, s) in enumerate(zip(ages, female, guess["age"], guess["sex"], strict=True))
    ]


def draw(path: Path, images: Tensor) -> None:
    """An axial slice of every brain (N, D, H, W) through the ventricles, eight in a row."""
    slices = [x[:, :, 46].T.flip(0) for x in images[: len(images) // 8 * 8]]
    rows = [torch.cat(slices[k : k + 8], 1) for k in range(0, len(slices), 8)]
    imsave(path, torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1.1)


def set_figures(judges: Judges, real: Tensor, made: Tensor) -> Line:
    """Distances of two sets (N, D, H, W) by the judge's features, with what halves of the real set
    show, and MS-SSIM of pairs in each."""
    x, y = judges.embed(real), judges.embed(made)

    def alike(images: Tensor) -> float:
        pairs = choose_pairs(len(images), PAIRS, SEED)
        return float(ms_ssim_pairs(images.float(), pairs, COMPARABLE).mean())

    half = len(x) // 2
    return {
        "fid": frechet(x, y),
        "fid floor": frechet_floor(x, SEED)[0],
        "kid": kernel_distance(x, y, SEED)[0],
        "kid floor": kernel_distance(x[:half], x[half:], SEED)[0],
        "ms-ssim": alike(made),
        "ms-ssim real": alike(real),
    }


@dataclass(frozen=True)
class Comparison:
    """How many brains of nobody in how many steps of DDIM, how many people of which split are
    changed and how, and where it is computed."""

    split: str
    n: int
    steps: int
    people: int
    edit: Edit
    device: torch.device
    workers: int


def make(out: Path, names: list[str], how: Comparison) -> None:
    people, judges = read_people(out), load_judge(read_bundle(out / "judge"), how.device)
    latents, numbers = latents_of(out, how.split)
    own = {k: z.float() for k, z in zip(numbers[: how.people], latents[:, 0], strict=False)}
    # Of real people nobody knows it.
    simulated = "tiv" in people.table[0]
    true = truths(out, people, list(own), how.workers) if simulated else None
    real = torch.from_numpy(people.images[people.rows(how.split)[: how.n]]).float()
    folder = folder_of(out, how.edit.guidance)
    folder.mkdir(exist_ok=True)
    for name in names:
        if (folder / f"{name}-sets.csv").exists():
            continue
        if (out / name / "unet.safetensors").exists():
            bundle = read_bundle(out / name)
            models = load_models(bundle, how.device)
            new = new_brains(models, bundle.schema, how.n, how.steps, how.edit.guidance)
            edited = changed_by(models, bundle.schema, people, own, how.edit)
        else:
            new, edited = new_in(out / name), changed_in(out / name)
        lines, sets = [], []
        if new is not None:
            lines, sets = new_lines(judges, new), [set_figures(judges, real, new[0])]
            draw(folder / f"{name}.png", new[0])
        keep(folder / f"{name}-new.csv", lines)
        found = list(edits(people, judges, true, edited))
        keep(folder / f"{name}-edits.csv", found)
        keep(folder / f"{name}-sets.csv", sets)
        print(f"{name}: {len(lines)} brains, {len(found)} edits", flush=True)


def keep(path: Path, lines: list[Line]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


def folder_of(out: Path, guidance: float) -> Path:
    return out / f"compare-{guidance:g}"


def read_lines(folder: Path, name: str, kind: str) -> list[dict[str, str]]:
    """Of all seeds of a name."""
    seeds = sorted(folder.glob(f"{name}-[0-9]-{kind}.csv")) or [folder / f"{name}-{kind}.csv"]
    lines = []
    for path in seeds:
        with path.open(newline="") as file:
            lines += list(csv.DictReader(file))
    return lines


def error_of(lines: list[dict[str, str]]) -> np.ndarray:
    return np.abs(column(lines, "age") - column(lines, "read"))


def right_sex(lines: list[dict[str, str]]) -> np.ndarray:
    return ((column(lines, "read female") > 0.5) == (column(lines, "female") > 0.5)).astype(float)


def column(lines: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(line[name]) for line in lines])


def words(value: Estimate) -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def mean(lines: list[dict[str, str]], values: np.ndarray) -> str:
    return words(mean_over_people(values, [line["subject"] for line in lines]))


def print_new(folder: Path, name: str) -> None:
    new, sets = read_lines(folder, name, "new"), read_lines(folder, name, "sets")
    if not new:
        return
    ages, read = column(new, "age"), column(new, "read")
    print(
        f"{name}, new brains: age error {mean(new, error_of(new))}, slope "
        f"{np.polyfit(ages, read, 1)[0]:.2f}, r {np.corrcoef(ages, read)[0, 1]:.2f}, sex right "
        f"{mean(new, right_sex(new))}; "
        + ", ".join(f"{k} {column(sets, k).mean():.3f}" for k in sets[0])
    )


def print_edits(folder: Path, name: str) -> None:
    edited = read_lines(folder, name, "edits")
    if not edited:
        return
    who = [line["subject"] for line in edited]
    deltas, change = column(edited, "delta"), column(edited, "change")
    print(
        f"{name}, counterfactuals: age error {mean(edited, error_of(edited))}, slope of the "
        f"change {words(ratio_over_people(deltas * change, deltas**2, who))}, sex kept "
        f"{mean(edited, right_sex(edited))}; "
        + ", ".join(f"{k} {mean(edited, column(edited, k))}" for k in TRUTH if k in edited[0])
    )
    errors = error_of(edited)
    groups = [f"{d:+d}: {errors[deltas == d].mean():.1f}" for d in DELTAS if (deltas == d).any()]
    print(f"{name}, age error by delta: " + ", ".join(groups))


def print_table(folder: Path, names: list[str], control: str) -> None:
    for name in [control, *names]:
        print_new(folder, name)
        print_edits(folder, name)
    for name in names:
        for kind, what in (("new", "new brains"), ("edits", "counterfactuals")):
            ours, theirs = read_lines(folder, name, kind), read_lines(folder, control, kind)
            if not (ours and theirs) or len(ours) != len(theirs):
                # People as they are have ages of their own.
                continue
            for measure, of in (("age error", error_of), ("sex right", right_sex)):
                difference = of(ours) - of(theirs)
                print(f"{name} less {control}, {what}: {measure} {mean(ours, difference)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("truths", "make", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--control", default="more")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--n", type=int, default=40, help="New brains.")
    parser.add_argument("--people", type=int, default=30, help="People who are changed.")
    parser.add_argument("--sampling", type=int, default=50, help="DDIM steps of a new brain.")
    parser.add_argument("--inversion", type=int, default=25, help="DDIM steps there, and back.")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="Processes that draw truths.")
    given = parser.parse_args()
    if given.stage == "table":
        print_table(folder_of(given.out, given.guidance), given.names, given.control)
        return
    edit = Edit(steps=given.inversion, depth=1.0, guidance=given.guidance)
    if given.stage == "truths":
        people = read_people(given.out)
        truths(given.out, people, people.rows(given.split)[: given.people].tolist(), given.workers)
        return
    how = Comparison(
        given.split,
        given.n,
        given.sampling,
        given.people,
        edit,
        pick_device(given.device),
        given.workers,
    )
    make(given.out, given.names, how)


if __name__ == "__main__":
    main()
