"""How a scan was acquired: makers, field strengths, sequences and what a protocol sets."""

from __future__ import annotations

from typing import Literal, get_args

Sequence = Literal["MPRAGE", "SPGR"]
Manufacturer = Literal["Siemens", "GE", "Philips"]
SEQUENCES: tuple[Sequence, ...] = get_args(Sequence)
MAKERS: tuple[Manufacturer, ...] = get_args(Manufacturer)
FIELDS_T = (1.5, 3.0, 7.0)
PARAMETERS = ("tr_ms", "te_ms", "ti_ms", "flip_degrees", "slice_mm")
# The conditions that change how a brain is imaged and not the brain.
ACQUISITION = frozenset(("manufacturer", "field_tesla", "sequence", *PARAMETERS))
