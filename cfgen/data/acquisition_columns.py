"""Which columns of a manifest say how a scan was acquired: names of cfgen, and those of BIDS."""

from __future__ import annotations

from cfgen.data.acquisition import ACQUISITION

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
