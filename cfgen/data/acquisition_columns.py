"""Which columns of a manifest say how a scan was acquired: names of cfgen, and those of BIDS.

cfgen's names have their unit in them; BIDS has times in seconds.
"""

from __future__ import annotations

from dataclasses import replace

from cfgen.data.acquisition import ACQUISITION
from cfgen.data.schema import Schema, Value, number_text
from cfgen.data.table import MISSING, Row

# BIDS 1.11, MRI metadata: hardware, sequence, timing and contrast.
BIDS_ACQUISITION = frozenset(
    (
        "Manufacturer",
        "ManufacturersModelName",
        "MagneticFieldStrength",
        "ReceiveCoilName",
        "PulseSequenceType",
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "MRAcquisitionType",
        "EchoTime",
        "InversionTime",
        "RepetitionTime",
        "RepetitionTimeExcitation",
        "RepetitionTimePreparation",
        "FlipAngle",
        "SliceThickness",
        "PartialFourier",
        "ParallelReductionFactorInPlane",
        "EchoSpacing",
        "NumberShots",
    )
)


def is_acquisition(column: str) -> bool:
    return column in ACQUISITION or column in BIDS_ACQUISITION


# BIDS' name -> cfgen's, and how many of cfgen's unit are one of BIDS'.
OWN_NAMES = {
    "Manufacturer": ("manufacturer", 1.0),
    "MagneticFieldStrength": ("field_tesla", 1.0),
    "PulseSequenceType": ("sequence", 1.0),
    "EchoTime": ("te_ms", 1000.0),
    "InversionTime": ("ti_ms", 1000.0),
    "RepetitionTime": ("tr_ms", 1000.0),
    "FlipAngle": ("flip_degrees", 1.0),
    "SliceThickness": ("slice_mm", 1.0),
}


def acquisition_of(row: Row) -> dict[str, Value]:
    """What the columns of a row say of its acquisition, by cfgen's names where it has one; numbers
    as numbers, without what is missing. A column of cfgen's own name holds before one of BIDS."""
    known: dict[str, Value] = {}
    for column, value in {**row.extra, **row.values}.items():
        text = str(value).strip()
        if not is_acquisition(column) or text.lower() in MISSING:
            continue
        name, factor = OWN_NAMES.get(column, (column, 1.0))
        if name == column or name not in known:
            known[name] = _scaled(text, factor)
    return known


def _scaled(text: str, factor: float) -> Value:
    try:
        # To as many digits as headers have: 0.0035 s are 3.5 ms.
        return float(number_text(float(text) * factor))
    except ValueError:
        return text


def with_acquisition(row: Row, schema: Schema) -> Row:
    """The row with values of the schema's conditions that its columns state by BIDS' names.

    Raises UsageError where one is outside the limits, or no level.
    """
    stated = acquisition_of(row)
    missing = [n for n in schema.names if n in stated and n not in row.values]
    if not missing:
        return row
    values = {n: schema.check_value(n, value_text(stated[n]), f"{row.source} {n}") for n in missing}
    return replace(row, values={**row.values, **values})


def value_text(value: Value) -> str:
    return value if isinstance(value, str) else number_text(value)
