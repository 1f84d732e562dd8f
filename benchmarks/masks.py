"""Edited label maps against the truth: `edit_masks` on simulated people, and its time.

    python benchmarks/masks.py                      # 8 people at 2 mm, a minute
    python benchmarks/masks.py --grid cdm-1mm --n 2

The targets are the true counterfactual volumes, the posteriors the simulator's tissue maps. Two
truths: `own` changes the volumes of the edited structures alone and leaves white matter and
ventricles where they are (what PCGM's rule supposes), `total` is the whole counterfactual, in which
the white surface moves under the cortex. `ceiling` is the Dice of the best map that can be made of
the region and its partners alone, `copy` that of the unedited map.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cfgen.causal.masks import EditedMasks, SoftMaps, edit_masks, region_voxels
from cfgen.causal.partners import PARTNERS
from cfgen.data.conditions import parse_interventions
from cfgen.data.parcellation import SIDES, regions_of
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.errors import CfgenError
from cfgen.measure.channels import channel_regions
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.reference import CORTEX, reference
from cfgen.sim.render import CHANNELS, Rendered, render

QUERIES = ("age=+20", "age=-20", "ad=0.8", "aud=1")
# The simulator's ventricles press on the deep nuclei too.
WALLS = {"lateral_ventricle": ("cerebral_wm", "caudate", "thalamus")}
# What is edited, which volumes of the graph are then its own, and its partners: (name, structure,
# volumes, partners).
EDITED = (
    ("cortex", "cortex", CORTEX[:-1], PARTNERS),
    ("hippocampus", "hippocampus", ("hippocampus",), PARTNERS),
    ("ventricle", "lateral_ventricle", ("ventricles",), PARTNERS),
    ("ventricle, nuclei too", "lateral_ventricle", ("ventricles",), PARTNERS | WALLS),
)
TABLE = "freesurfer"


def mask(labels: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    codes = [code for code, region in regions_of(TABLE).items() if region in regions]
    return torch.isin(labels, torch.tensor(codes, dtype=labels.dtype))


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def own_truth(factual: Subject, changed: Subject, names: tuple[str, ...]) -> Subject:
    """The counterfactual of `names` alone: every other volume is the factual one."""
    regions = factual.volumes.regions.copy()
    columns = [graph().regions.index(name) for name in names]
    regions[:, columns] = changed.volumes.regions[:, columns]
    return replace(factual, volumes=replace(factual.volumes, regions=regions))


def edit(
    factual: Rendered,
    true: Rendered,
    structure: str,
    partners: Mapping[str, Sequence[str]],
    voxel_mm3: float,
) -> tuple[EditedMasks, float, float]:
    """The factual map edited to the true volumes; wall and CPU seconds."""
    labels = torch.from_numpy(factual.labels)
    volumes = region_voxels(torch.from_numpy(true.labels), TABLE)
    targets = {
        region: float(voxels) * voxel_mm3
        for region, voxels in volumes.items()
        if region[0] == structure or region[0].startswith(f"{structure}_")
    }
    values = torch.from_numpy(factual.posteriors).permute(3, 0, 1, 2).float() / 255
    maps = SoftMaps(values.contiguous(), channel_regions(len(CHANNELS), "simulator"))
    wall, cpu = time.perf_counter(), time.process_time()
    edited = edit_masks(
        labels, maps, targets, table_name=TABLE, voxel_mm3=voxel_mm3, partners=partners
    )
    return edited, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", default="t1w-2mm")
    parser.add_argument("--preset", default="mixed")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--edit", default="all", help="one of the names alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, head = graph(), reference(options.grid)
    voxel_mm3 = head.grid.voxel_mm3
    people = cohort.sample(
        model, cohort.preset(options.preset), options.seed, 0, options.n, 1, 0.0, PLAIN
    )
    known = cohort.schema(model)
    figures: dict[tuple[str, str, str], list[tuple[float, ...]]] = defaultdict(list)
    white_moved, seconds = 0, []
    for subject in people:
        factual = render(model, head, subject, options.seed)
        for query in QUERIES:
            intervention = parse_interventions(known, sets=[query])[0]
            try:
                changed = cohort.counterfactual(model, subject, intervention, PLAIN)
                total = render(model, head, changed, options.seed)
            except CfgenError as error:
                print(f"left out: {subject.key} {query}: {error}")
                continue
            for name, structure, volumes, partners in EDITED:
                if options.edit not in ("all", name):
                    continue
                own = render(model, head, own_truth(subject, changed, volumes), options.seed)
                for truth, true in (("own", own), ("total", total)):
                    try:
                        edited, wall, cpu = edit(factual, true, structure, partners, voxel_mm3)
                    except CfgenError as error:
                        print(f"refused: {subject.key} {query} {truth}: {error}")
                        continue
                    if name == "cortex":
                        seconds.append((wall, cpu))
                    white_moved += add(figures, truth, query, name, factual, true, edited)
    report(figures)
    wall, cpu = np.median(seconds or [(0.0, 0.0)], axis=0)
    print(f"six lobes, both sides, {options.grid}: {wall:.2f} s, {cpu:.2f} s of CPU (median)")
    print(f"edits of the cortex or hippocampus that moved white matter: {white_moved}")


def add(
    figures: dict[tuple[str, str, str], list[tuple[float, ...]]],
    truth: str,
    query: str,
    name: str,
    factual: Rendered,
    true: Rendered,
    edited: EditedMasks,
) -> int:
    """A line for every edited region; 1 where white matter changed and should not."""
    before, after = torch.from_numpy(factual.labels), torch.from_numpy(true.labels)
    for e in edited.edits:
        here, there = mask(before, [e.region]), mask(after, [e.region])
        grows = int(there.sum()) > int(here.sum())
        reach = here | mask(before, list(e.partners)) if grows else here
        most = float((reach & there).sum())
        ceiling = 2 * most / float(there.sum() + there.sum())
        got = dice(mask(edited.labels, [e.region]), there)
        change = (e.after - e.before) / e.before
        line = (got, ceiling, dice(here, there), change, abs(e.error), e.rings)
        figures[truth, query, e.region[0] if name == "cortex" else name].append(line)
    white = mask(before, [("cerebral_wm", s) for s in SIDES])
    still = torch.equal(white, mask(edited.labels, [("cerebral_wm", s) for s in SIDES]))
    ventricles = any(e.region[0] == "lateral_ventricle" for e in edited.edits)
    return int(not still and not ventricles)


def report(figures: dict[tuple[str, str, str], list[tuple[float, ...]]]) -> None:
    print(
        "| truth | query | structure | change, % | Dice | lowest | ceiling | copy | worst error, "
        "voxels | rings |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (truth, query, structure), lines in sorted(figures.items()):
        a = np.array(lines)
        mean, lowest, highest = a.mean(0), a.min(0), a.max(0)
        print(
            f"| {truth} | {query} | {structure} | {100 * mean[3]:+.1f} | {mean[0]:.3f} |"
            f" {lowest[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} | {highest[4]:.2f} |"
            f" {highest[5]:.0f} |"
        )


if __name__ == "__main__":
    main()
