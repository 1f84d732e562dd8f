"""Add the tissue network to a bundle, and say how well it does, there and elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgen.bundle import Bundle, copy_bundle, half, net_config, read_bundle, write_part
from cfgen.config import FitConfig, TissueAugmentation
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row, write_table
from cfgen.data.tissues import TISSUES
from cfgen.device import pick_device
from cfgen.errors import ManifestError
from cfgen.measure.tissues import (
    PART,
    TissueScan,
    dice_lines,
    read_tissue_scan,
    summary,
    tissue_dice,
)
from cfgen.nets.segmenter import TissueNet
from cfgen.processes import leads
from cfgen.progress import each
from cfgen.train.fit import fit
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.tissues import TISSUE_NET, TissueTask
from cfgen.train.together import check_batch

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class TissueData:
    """Rows with labels: of each person in `train` the scan and what was made of it, `val`, and the
    scans of further manifests by name."""

    train: list[list[Row]]
    val: list[Row]
    tests: dict[str, list[Row]]


def train_tissues(
    data: TissueData,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    augmentation: TissueAugmentation = "none",
) -> Bundle:
    """Add the tissue network to a bundle, in the part 'tissues'.

    Dice by tissue on val and on the tests goes into the part's configuration and, scan by scan,
    into dice.csv beside the checkpoints. The weights are the last ones; nothing is chosen by Dice.
    Raises ImageError for labels of another grid or table than cfgen knows.
    """
    check_batch(config.batch_size)
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    renditions = sum(map(len, data.train))
    log.info("segmentation: %d people, %d images to learn from", len(data.train), renditions)
    with_scans = each(data.train, len(data.train), "people read")
    people = [[read_tissue_scan(row) for row in rows] for rows in with_scans]
    val = [read_tissue_scan(row) for row in data.val]
    task = TissueTask(people, val, torch_device, config, augmentation)
    folder = runs_folder(out, PART)
    net = fit(task, config, folder)
    assert isinstance(net, TissueNet)
    if not leads():
        return bundle
    trained = trained_on([rows[0] for rows in data.train], config)
    trained |= {"images": renditions, "augmentation": augmentation}
    # The weights are measured as they are shipped: rounded to half precision.
    net = net.half().float()
    lines: list[dict[str, str]] = []
    figures = {}
    for name, scans in {"val": val, **_read(data.tests)}.items():
        found = tissue_dice(net, scans, torch_device)
        figures[name] = summary(found, [s.row.subject for s in scans])
        lines += scan_lines(name, scans, found)
    write_table(folder / "dice.csv", lines)
    for text in dice_lines(figures):
        log.info("segmentation %s", text)
    description = {**net_config(TISSUE_NET), "classes": list(TISSUES), "dice": figures}
    return write_part(copy_bundle(bundle, out), PART, half(net), description, trained)


def _read(tests: dict[str, list[Row]]) -> dict[str, list[TissueScan]]:
    return {name: [read_tissue_scan(row) for row in rows] for name, rows in tests.items()}


def scan_lines(
    name: str, scans: Sequence[TissueScan], found: dict[str, np.ndarray]
) -> list[dict[str, str]]:
    """A line a scan: which, and its Dice."""
    return [
        {"manifest": name, "subject": s.row.subject, "session": s.row.session}
        | {tissue: f"{values[n]:.5f}" for tissue, values in found.items()}
        for n, s in enumerate(scans)
    ]


def read_tissue_data(
    manifest: Path, augmented: Sequence[Path] = (), tests: Sequence[Path] = ()
) -> TissueData:
    """The labelled rows of a manifest's splits train and val, counterfactuals of the train people
    out of `augmented` manifests, and scans of `tests`.

    A person of `augmented` who is not in train is left out, so that nobody of val or a test gets
    into training; of a test manifest the rows of split 'test' count where there are any, and nobody
    who was trained on. What is left out is said. Raises ManifestError where nothing is left.
    """
    rows = _labelled(manifest)
    by_person: dict[str, list[Row]] = {}
    for row in (r for r in rows if r.split == "train"):
        by_person.setdefault(row.subject, []).append(row)
    val = [r for r in rows if r.split == "val"]
    for split, part in (("train", by_person), ("val", val)):
        if not part:
            raise ManifestError(
                manifest,
                f"no row with labels has split '{split}'",
                "scans with label maps in train to learn from, and in val to be measured on",
                "add the columns labels and split",
            )
    for path in augmented:
        made = _labelled(path)
        kept = [r for r in made if r.subject in by_person]
        _say_left_out(path, len(made) - len(kept), "are of nobody in train")
        if not kept:
            raise ManifestError(
                path, "nobody of it is in train", f"subjects of the train rows of {manifest}"
            )
        for row in kept:
            by_person[row.subject].append(row)
    named = {_name(path): _tested(path, by_person) for path in tests}
    if len(named) < len(tests) or "val" in named:
        raise ManifestError(
            ", ".join(map(str, tests)), "two of one name, or one called val", "other names"
        )
    return TissueData(list(by_person.values()), val, named)


def _labelled(path: Path) -> list[Row]:
    rows = read_manifest(path, default_schema())
    kept = [r for r in rows if r.labels]
    _say_left_out(path, len(rows) - len(kept), "have no labels")
    return kept


def _name(path: Path) -> str:
    """A manifest that says nothing by its own name is called as its folder is."""
    return path.absolute().parent.name if path.stem == "manifest" else path.stem


def _tested(path: Path, trained: dict[str, list[Row]]) -> list[Row]:
    rows = _labelled(path)
    rows = [r for r in rows if r.split == "test"] or rows
    kept = [r for r in rows if r.subject not in trained]
    _say_left_out(path, len(rows) - len(kept), "have the subject of a train row")
    if not kept:
        raise ManifestError(
            path, "no row to test on", "scans with labels of people who were not trained on"
        )
    return kept


def _say_left_out(path: Path, count: int, why: str) -> None:
    if count:
        log.warning("%s: %d rows %s and are left out", path, count, why)
