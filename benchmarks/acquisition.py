"""Scans under other protocols against the simulator's truth, and a real scan against literature.

    python benchmarks/acquisition.py --out build/acquisition --people 4     # half an hour, one core
    python benchmarks/acquisition.py --out build/acquisition --real pumi_sub-001_T1w.nii.gz

Three cohorts of simulated people: `one` scanner, scanners at random (`randomised`), and scanners
that age decides (`confounded`). Of each person the true counterfactual scan is known: same anatomy,
texture, coil and noise, another protocol. Each is guessed five ways: `copy`, the scan as it is;
`z-score` and `histogram`, mean and SD or all brightness of somebody else's brain under the target
protocol; `curve`, physics alone, and `all` of it (bias field, resolution and the scan's own noise
too). Errors are of brightness in units of white matter's, over the head inside the skull, since a
scanner's gain is arbitrary. Volumes by the segmenter: of the guess, brought back to the scan's
contrast, against the scan; and `read`, of the guess against the true counterfactual, as they are.
`there and back` is the mean error of a scan that was brought to the target and back, `by way` that
of 3 T by way of 1.5 T to the target, against the direct way, both in white matter's brightness.

What is there is not made again. The simulator's tissues have the T1 and the scanners the fields
that `cfgen/sim/physics.py` lists, and the guess uses the same lists: these errors are those of the
method where its physics holds.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.data.conditions import default_schema, parse_interventions
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Volume, open_channels, read_geometry, read_volume, write_like
from cfgen.edit.protocols import Place
from cfgen.edit.rerender import Effects, OwnNoise, Rendering, rerender
from cfgen.errors import CfgenError
from cfgen.jobs.simulate import Plan, simulate
from cfgen.measure.anatomy import volume_changes
from cfgen.measure.levels import Levels, probability, tissue_levels
from cfgen.measure.segmenter import Segmentation, load_segmenter, segment, soft_volumes
from cfgen.metrics.image import ssim
from cfgen.nets.segmenter import Segmenter
from cfgen.scan.moved import noise_sd
from cfgen.scan.pictures import counterfactual_picture
from cfgen.scan.protocol import scan_protocol
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from cfgen.sim.physics import TISSUES, signal, tissue
from cfgen.sim.protocols import stated

ONE = (
    "field_tesla=1.5",
    "field_tesla=7",
    "te_ms=6",
    "tr_ms=1900",
    "ti_ms=1150",
    "flip_degrees=14",
    "sequence=SPGR",
)
MANY = ("field_tesla=1.5", "field_tesla=3", "sequence=SPGR", "sequence=MPRAGE")
# Preset, confounding, truths.
COHORTS = {
    "one": ("lifespan", 0.0, ONE),
    "randomised": ("iap", 0.0, MANY),
    "confounded": ("iap", 1.0, MANY[:3]),
}
ALL = Effects("target", "own", True)
SEED = 11
CPU = torch.device("cpu")
METHODS = ("copy", "z-score", "histogram", "curve", "all")


@dataclass(frozen=True)
class Scan:
    """A scan with what is measured of it once."""

    row: Row
    volume: Volume
    regions: Segmentation
    levels: Levels
    rendering: Rendering


def look(net: Segmenter, row: Row) -> Scan:
    volume = read_volume(row.image)
    regions = segment(net, volume, CPU)
    assert regions.posteriors is not None
    levels = tissue_levels(volume, regions.posteriors)
    return Scan(row, volume, regions, levels, rendering(row))


def rendering(row: Row) -> Rendering:
    protocol = scan_protocol(row)[0]
    grid, axis = read_geometry(row.image)
    return Rendering(
        stated(protocol, row.image.name)[0], Place(grid.spacing, axis).resolution(protocol)
    )


def made(scan: Scan, target: Rendering, effects: Effects, levels: Levels | None = None):
    noise = None
    if effects.noise != "keep":
        white = probability(scan.regions.posteriors, "white")
        sd = noise_sd(scan.volume, scan.regions.mask, white, scan.regions.posteriors.grid)
        noise = OwnNoise(sd, np.random.default_rng(SEED))
    pair = (scan.rendering, target)
    return rerender(scan.volume, levels or scan.levels, pair, effects, noise)


def guesses(scan: Scan, target: Rendering, other: np.ndarray) -> dict[str, np.ndarray]:
    """By method; `other` (n,) is the brightness of another brain under the target protocol."""
    data, brain = scan.volume.data, scan.volume.data > 0
    own = data[brain]
    z, matched = data.copy(), data.copy()
    z[brain] = (own - own.mean()) / own.std() * other.std() + other.mean()
    ranks = np.linspace(0, 1, 1000)
    matched[brain] = np.interp(own, np.quantile(own, ranks), np.quantile(other, ranks))
    return {
        "copy": data,
        "z-score": z,
        "histogram": matched,
        "curve": made(scan, target, Effects()).image,
        "all": made(scan, target, ALL).image,
    }


def worst(changes) -> float:
    return max(abs(c.percent) for c in changes)


def of_truth(net: Segmenter, scan: Scan, truth: Row, other: Row, volumes: bool) -> dict:
    """Every figure of one person and one target."""
    target, true = rendering(truth), read_volume(truth.image).data
    channels, _ = open_channels(truth.posteriors)
    white = np.asarray(channels[..., 3]) > 0.97
    inside = (true > 0) & (scan.volume.data > 0)

    def scaled(image: np.ndarray) -> np.ndarray:
        return image / np.median(image[white])

    reference = scaled(true)
    elsewhere = read_volume(other.image).data
    images = guesses(scan, target, elsewhere[elsewhere > 0])
    figures: dict = {}
    for method, image in images.items():
        error = (scaled(image) - reference)[inside]
        figures[method] = {
            "mae": float(np.abs(error).mean()),
            "bias": float(error.mean()),
            "ssim": ssim(scaled(image), reference, inside),
        }
    there = made(scan, target, Effects())
    if volumes:
        before = scan.regions.volumes
        for method, effects in (("curve", Effects()), ("all", ALL)):
            result = made(scan, target, effects)
            again = scan.volume.like(result.undone(np.rint(result.image)))
            changes = volume_changes(before, soft_volumes(net, again, CPU))
            figures[method]["volume"] = worst(changes)
        seen = soft_volumes(net, scan.volume.like(true), CPU)
        for method in ("copy", "curve", "all"):
            read = soft_volumes(net, scan.volume.like(images[method]), CPU)
            figures[method]["read"] = worst(volume_changes(seen, read))
    figures["there and back"] = returned(scan, target, there.image)
    figures["by way"] = by_way(scan, target, there.image)
    return figures


def on(scan: Scan, image: np.ndarray, at: Rendering) -> Scan:
    """An image of the scan's head under another protocol, its brightness measured anew."""
    volume = scan.volume.like(np.rint(image))
    return replace(
        scan,
        volume=volume,
        levels=tissue_levels(volume, scan.regions.posteriors),
        rendering=at,
    )


def apart(scan: Scan, image: np.ndarray, other: np.ndarray) -> float:
    inside = scan.volume.data > 0
    return float(np.abs(image - other)[inside].mean() / scan.levels.white)


def returned(scan: Scan, target: Rendering, there: np.ndarray) -> float:
    back = made(on(scan, there, target), scan.rendering, Effects()).image
    return apart(scan, back, scan.volume.data)


def by_way(scan: Scan, target: Rendering, direct: np.ndarray) -> float:
    own = scan.rendering.scan
    middle = replace(
        scan.rendering, scan=replace(own, field_tesla=1.5 if own.field_tesla > 2 else 3.0)
    )
    first = on(scan, made(scan, middle, Effects()).image, middle)
    return apart(scan, made(first, target, Effects()).image, direct)


def simulated(out: Path, name: str, people: int) -> tuple[list[Row], list[Row]]:
    folder = out / name
    preset, confounding, truths = COHORTS[name]
    if not (folder / "truth.csv").exists():
        variables = cohort.schema(graph())
        asked = tuple(parse_interventions(variables, sets=[t])[0] for t in truths)
        plan = Plan(cohort.preset(preset), 0, people, asked, SEED, confounding=confounding)
        simulate(plan, folder, overwrite=True)
    schema = default_schema()
    return read_manifest(folder / "manifest.csv", schema), read_manifest(
        folder / "truth.csv", schema
    )


def done(out: Path, net: Segmenter, people: int, measured: int) -> Iterator[tuple[str, str, dict]]:
    """Cohort, target and figures of everyone, kept in files."""
    for name in COHORTS:
        rows, truths = simulated(out, name, people)
        looked: dict[str, Scan] = {}
        for truth in truths:
            label = truth.extra["intervention"]
            path = out / "figures" / f"{name}_{truth.subject}_{label}.json"
            person = next(r for r in rows if r.subject == truth.subject)
            if rendering(person) == rendering(truth):
                continue
            if not path.exists():
                if person.subject not in looked:
                    looked = {person.subject: look(net, person)}
                others = [t for t in truths if t.extra["intervention"] == label]
                other = others[(others.index(truth) + 1) % len(others)]
                first = rows.index(person) < measured
                try:
                    figures = of_truth(net, looked[person.subject], truth, other, first)
                except CfgenError as error:
                    figures = {"refused": str(error)}
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(figures, indent=1))
            yield name, label, json.loads(path.read_text())


def summary(out: Path, net: Segmenter, people: int, measured: int) -> None:
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    refused = []
    for name, label, figures in done(out, net, people, measured):
        if "refused" in figures:
            refused.append(f"{name} {label}: {figures['refused']}")
        else:
            groups[name, label].append(figures)
    lines = []
    for (name, label), many in groups.items():
        copied = float(np.mean([f["copy"]["mae"] for f in many]))
        for method in METHODS:
            line = {"cohort": name, "target": label, "people": len(many), "method": method}
            for figure in ("mae", "bias", "ssim", "volume", "read"):
                known = [f[method][figure] for f in many if figure in f[method]]
                line[figure] = f"{np.mean(known):.4f}" if known else ""
            line["mae_of_copy"] = f"{float(line['mae']) / copied:.3f}"
            if method == "curve":
                for figure in ("there and back", "by way"):
                    line[figure] = f"{np.mean([f[figure] for f in many]):.4f}"
            lines.append(line)
    columns = list(dict.fromkeys(c for line in lines for c in line))
    with (out / "acquisition.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
    print((out / "acquisition.csv").read_text())
    print("\n".join(refused))


def contrast(volume: Volume, regions: Segmentation) -> str:
    levels = tissue_levels(volume, regions.posteriors)
    return ratios(levels.white, levels.grey, levels.fluid)


def ratios(white: float, grey: float, fluid: float) -> str:
    return f"grey/white {grey / white:.3f}, fluid/white {fluid / white:.3f}"


def real(out: Path, net: Segmenter, image: Path) -> None:
    """A real scan to 1.5 T and to another TI: its contrasts, and those of the equations."""
    out.mkdir(parents=True, exist_ok=True)
    scan = look(net, Row(subject="real", image=image))
    print(f"{image.name}: {contrast(scan.volume, scan.regions)}")
    own = scan.rendering.scan
    targets = {"1.5 T": replace(own, field_tesla=1.5), "TI 1100 ms": replace(own, ti_ms=1100.0)}
    for label, protocol in {"as it is": own, **targets}.items():
        for table in ("apparent", "wright2008"):
            values = (
                float(signal(tissue(n, protocol.field_tesla, table), protocol)) for n in TISSUES
            )
            print(f"  {label}, {table}: {ratios(*values)}")
    for label, protocol in targets.items():
        result = made(scan, replace(scan.rendering, scan=protocol), Effects())
        print(f"  to {label}: {contrast(scan.volume.like(result.image), scan.regions)}")
        picture = out / f"real_{label.replace(' ', '')}.png"
        brain = scan.regions.mask
        data = np.where(brain, scan.volume.data, 0), np.where(brain, result.image, 0)
        counterfactual_picture(*data, scan.volume.grid, brain, picture, label)


def timed(out: Path, net: Segmenter) -> None:
    """Seconds for a simulated 1 mm scan, once it is segmented."""
    folder = out / "one_mm"
    if not (folder / "manifest.csv").exists():
        simulate(Plan(cohort.preset("lifespan"), 0, 1, (), SEED, "cdm-1mm"), folder, overwrite=True)
    row = read_manifest(folder / "manifest.csv", default_schema())[0]
    scan = look(net, row)
    target = replace(scan.rendering, scan=replace(scan.rendering.scan, field_tesla=1.5))
    for effects in (Effects(), ALL):
        seconds = []
        for _ in range(3):
            start = time.process_time(), time.perf_counter()
            levels = tissue_levels(scan.volume, scan.regions.posteriors)
            result = made(scan, target, effects, levels)
            write_like(scan.volume, result.image, folder / "timed.nii.gz")
            seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        start = time.process_time()
        soft_volumes(net, scan.volume.like(result.undone(result.image)), CPU)
        measured = time.process_time() - start
        cpu, wall = np.median(seconds, 0)
        shape = "x".join(map(str, scan.volume.data.shape))
        print(
            f"1 mm, {shape}, {effects}: {cpu:.1f} processor seconds, {wall:.1f} s; "
            f"its volumes {measured:.1f} processor seconds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--measured", type=int, default=2, help="people whose regions are measured")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    net = load_segmenter(read_bundle(DEFAULT_BUNDLE), CPU)
    if arguments.real:
        real(arguments.out, net, arguments.real)
    elif arguments.time:
        timed(arguments.out, net)
    else:
        summary(arguments.out, net, arguments.people, arguments.measured)


if __name__ == "__main__":
    main()
