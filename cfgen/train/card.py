"""What the gate and the head template learn from the training scans."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.scan.brain import HEAD_SPACING_MM, HeadTemplate, build_head_template
from cfgen.scan.gate import card_of, fit_measures, scan_measures
from cfgen.scan.prepared import load_prepared
from cfgen.space.grids import work_grid
from cfgen.space.template import template_brain


def head_template(rows: list[Row]) -> HeadTemplate:
    """The mean whole head of the scans that were prepared."""
    grid = work_grid(template_brain()[1], HEAD_SPACING_MM)

    def heads() -> Iterator[tuple[Volume, np.ndarray, np.ndarray]]:
        for row in rows:
            prepared = load_prepared(row.image)
            yield read_volume(row.extra["scan"]), prepared.native_mask, prepared.to_native

    return build_head_template(heads(), grid)


def training_card(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """What the gate measures in the training scans (`scan/gate.py`), lowest and highest."""

    def measures() -> Iterator[dict[str, float]]:
        for row in rows:
            prepared = load_prepared(row.image)
            scan = read_volume(row.extra["scan"])
            yield scan_measures(scan, prepared.native_mask) | fit_measures(prepared)

    return card_of(measures())
