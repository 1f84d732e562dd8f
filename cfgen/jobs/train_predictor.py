"""Add the predictor of conditions to a bundle."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from cfgen.bundle import (
    Bundle,
    copy_bundle,
    half,
    net_config,
    read_bundle,
    write_part,
)
from cfgen.processes import leads
from cfgen.train.cohort import read_splits
from cfgen.train.predictor import fit_predictor

log = logging.getLogger("cfgen")


def train_predictor(manifest: Path, source: Path, out: Path) -> Bundle:
    """Add the predictor of conditions to a bundle; it sees real scans alone.

    It is solved at once: of several processes the first does it, and the others nothing.
    """
    bundle = read_bundle(source)
    if not leads():
        return bundle
    train, val = read_splits(manifest, bundle.schema, bundle.preprocess.grid)
    net, config = fit_predictor(train.images, train.conditions)
    with torch.inference_mode():
        outputs = torch.cat([net(x[None, None].float()) for x in val.images])
    guesses = [bundle.schema.decode(vector.numpy()) for vector in outputs]
    for v in bundle.schema.variables:
        if v.kind == "continuous" and not v.added:
            pairs = zip(guesses, val.rows, strict=True)
            errors = [abs(float(g[v.name]) - float(row.values[v.name])) for g, row in pairs]
            log.info("predictor: %s MAE %.2f %s on val", v.name, np.mean(errors), v.unit)
    copied = copy_bundle(bundle, out)
    return write_part(
        copied, "predictor", half(net), net_config(config), {"scans": len(train.rows)}
    )
