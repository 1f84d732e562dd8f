"""Add the segmenter to a bundle."""

from __future__ import annotations

import logging
from pathlib import Path

from cfgen.bundle import (
    Bundle,
    copy_bundle,
    half,
    read_bundle,
    write_part,
)
from cfgen.config import FitConfig
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.device import pick_device
from cfgen.errors import ManifestError
from cfgen.measure.segmenter import segmenter_part
from cfgen.nets.segmenter import Segmenter
from cfgen.processes import leads
from cfgen.train.fit import fit
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.segmenter import GOING_ON, SEGMENTER, SegmenterLoss, SegmenterTask, meet_volumes
from cfgen.train.segmenter_data import read_label_maps, read_labelled_scans
from cfgen.train.together import check_batch

log = logging.getLogger("cfgen")


# Labelled scans by whose volumes a segmenter's scores are shifted.
CALIBRATED_SCANS = 12


def train_segmenter(
    manifest: Path,
    label_maps: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    init: Path | None = None,
) -> Bundle:
    """Add the segmenter to a bundle: from whole-head label maps, and whole heads with labels.

    Rows of `manifest` without labels, or of another split than train, are not trained on; every
    fourth of the val split is for figures. `init` is a bundle whose segmenter the training goes on
    from. Of several processes the first writes. Raises ManifestError when no val row has labels.
    """
    check_batch(config.batch_size)
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    rows = read_manifest(manifest, default_schema())
    train = [r for r in rows if r.split == "train" and r.labels]
    val = [r for r in rows if r.split == "val" and r.labels][::4]
    if not val:
        raise ManifestError(
            manifest,
            "no row with labels has split 'val'",
            "scans kept out of training, for figures",
            "add a split column with train and val",
        )
    maps = read_label_maps(label_maps)
    log.info("segmenter: %d label maps, %d labelled scans", len(maps), len(train))
    scans = read_labelled_scans(train)
    loss = SegmenterLoss() if init is None else GOING_ON
    task = SegmenterTask(maps, scans, read_labelled_scans(val), torch_device, config, loss=loss)
    if init is not None:
        read_bundle(init).fill(task.net, "segmenter")
    net = fit(task, config, runs_folder(out, "segmenter"))
    assert isinstance(net, Segmenter)
    if not leads():
        return bundle
    meet_volumes(net, scans[:: max(1, len(scans) // CALIBRATED_SCANS)], torch_device)
    trained = {"label_maps": len(maps)} | trained_on(train, config)
    return write_part(
        copy_bundle(bundle, out), "segmenter", half(net), segmenter_part(SEGMENTER), trained
    )
