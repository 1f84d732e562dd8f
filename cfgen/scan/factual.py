"""The factual conditions of a scan: given, found beside it, or predicted; each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfgen.bundle import Bundle
from cfgen.data.bids import bids_values
from cfgen.data.conditions import Intervention, Values
from cfgen.errors import Notice, UsageError
from cfgen.measure.predictor import predict_conditions


@dataclass(frozen=True)
class Factual:
    """The subject's conditions, where each came from in words, and which were predicted."""

    values: dict[str, float | str]
    sources: dict[str, str]
    predicted: frozenset[str] = frozenset()


def known_conditions(bundle: Bundle, scan: Path, given: Values, source: str) -> Factual:
    """What the caller gives, and what else the files beside the scan tell (BIDS)."""
    values: dict[str, float | str] = dict(given)
    sources = dict.fromkeys(given, source)
    if bundle.schema.missing(values):
        beside, where = bids_values(scan, bundle.schema)
        for name, value in beside.items():
            if name not in values:
                values[name], sources[name] = value, where
    return Factual(values, sources)


def check_targets(interventions: Sequence[Intervention], known: Factual, bundle: Bundle) -> None:
    """Refuse impossible targets before anything is computed, where the factual value is known."""
    missing = bundle.schema.missing(known.values)
    if not missing:
        for intervention in interventions:
            # A volume is known when the scan has been measured.
            intervention.only(known.values).apply(known.values)
    elif "predictor" not in bundle.parts:
        raise UsageError(
            "--from",
            f"{' and '.join(missing)} of the scan unknown, and the bundle has no predictor",
            "the factual conditions",
            f"say them, for example --from {missing[0]}=...",
        )


def complete(
    bundle: Bundle, image: np.ndarray, device: torch.device, known: Factual
) -> tuple[Factual, list[Notice]]:
    """Fill what is missing by prediction from the prepared image (D, H, W), and say so."""
    missing = bundle.schema.missing(known.values)
    if not missing:
        return known, []
    guess = predict_conditions(bundle, image, device)
    values = dict(known.values) | {name: guess[name] for name in missing}
    sources = dict(known.sources) | dict.fromkeys(missing, "predicted from the image")
    said = ",".join(f"{n}={value_text(values[n])}" for n in missing)
    text = f"factual {said} predicted from the image, not measured; say --from {said} to set it"
    return Factual(values, sources, frozenset(missing)), [Notice("predicted", text)]


def value_text(value: float | str) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
