"""Add the tissue network to a bundle, and say how well it does, there and elsewhere."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgen.bundle import Bundle, copy_bundle, half, net_config, read_bundle, write_part
from cfgen.config import FitConfig, TissueAugmentation
from cfgen.data.table import write_table
from cfgen.data.tissues import TISSUES
from cfgen.device import pick_device
from cfgen.measure.tissues import (
    PART,
    TissueScan,
    dice_lines,
    load_tissues,
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
from cfgen.train.tissues_data import TissueData, read_tissue_data
from cfgen.train.together import check_batch

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Manifests:
    """What is learned from and measured on (`train.tissues_data.read_tissue_data`): scans with
    splits, counterfactuals of their train people, and scans to be tested on."""

    scans: Path
    augmented: Sequence[Path] = ()
    tests: Sequence[Path] = ()


def train_tissues(
    manifests: Manifests,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    augmentation: TissueAugmentation = "none",
    init: Path | None = None,
) -> Bundle:
    """Add the tissue network to a bundle, in the part 'tissues'; `init` is a bundle whose tissue
    network the training goes on from.

    Dice by tissue on val and on the tests goes into the part's configuration and, scan by scan,
    into dice.csv beside the checkpoints. The weights are the last ones; nothing is chosen by Dice.
    Raises ManifestError where a manifest lacks what is needed, ImageError for labels of another
    grid than their scan's, or of a table that cfgen does not know, BundleError where `init` has no
    tissue network.
    """
    check_batch(config.batch_size)
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    first = None if init is None else load_tissues(read_bundle(init), torch_device)
    data = read_tissue_data(manifests.scans, manifests.augmented, manifests.tests)
    renditions = sum(map(len, data.train))
    log.info("segmentation: %d people, %d images to learn from", len(data.train), renditions)
    with_scans = each(data.train, len(data.train), "people read")
    people = [[read_tissue_scan(row) for row in rows] for rows in with_scans]
    measured = {
        name: [read_tissue_scan(row) for row in rows]
        for name, rows in {"val": data.val, **data.tests}.items()
    }
    task = TissueTask(people, measured["val"], torch_device, config, augmentation)
    if first is not None:
        task.net.load_state_dict(first.state_dict())
    folder = runs_folder(out, PART)
    net = fit(task, config, folder / _digest(data, augmentation, init))
    assert isinstance(net, TissueNet)
    if not leads():
        return bundle
    trained = trained_on([rows[0] for rows in data.train], config)
    trained |= {"images": renditions, "augmentation": augmentation}
    # The weights are measured as they are shipped: rounded to half precision.
    net = net.half().float()
    lines: list[dict[str, str]] = []
    figures = {}
    for name, scans in measured.items():
        found = tissue_dice(net, scans, torch_device)
        figures[name] = summary(found, [s.row.subject for s in scans])
        lines += scan_lines(name, scans, found)
    write_table(folder / "dice.csv", lines)
    for text in dice_lines(figures):
        log.info("segmentation %s", text)
    description = {**net_config(TISSUE_NET), "classes": list(TISSUES), "dice": figures}
    return write_part(copy_bundle(bundle, out), PART, half(net), description, trained)


def _digest(data: TissueData, augmentation: TissueAugmentation, init: Path | None) -> str:
    """Of what is learned from: other scans, changed otherwise, or another start are another run."""
    images = [[str(row.image.absolute()) for row in rows] for rows in data.train]
    told = [augmentation, images, *([] if init is None else [str(init.absolute())])]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def scan_lines(
    name: str, scans: Sequence[TissueScan], found: dict[str, np.ndarray]
) -> list[dict[str, str]]:
    """A line a scan: which, and its Dice."""
    return [
        {"manifest": name, "subject": s.row.subject, "session": s.row.session}
        | {tissue: f"{values[n]:.5f}" for tissue, values in found.items()}
        for n, s in enumerate(scans)
    ]
