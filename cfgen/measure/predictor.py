"""Conditions read from the image by the bundle's predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cfgen.bundle import Bundle
from cfgen.data.conditions import Schema
from cfgen.device import autocast
from cfgen.nets.predictors import Predictor, PredictorConfig


def load_predictor(bundle: Bundle, device: torch.device) -> torch.nn.Module:
    """Raises BundleError when the bundle has no predictor."""
    return bundle.network("predictor", Predictor, PredictorConfig, device)


@torch.inference_mode()
def predict_conditions(
    bundle: Bundle, image: np.ndarray, device: torch.device
) -> dict[str, float | str]:
    """Every condition of the schema in raw units, from an image (D, H, W) on the model grid.

    Numbers are cut to the range seen in training: beyond it a prediction knows nothing.
    """
    out = _outputs(load_predictor(bundle, device), image, device)
    values = bundle.schema.decode(out.cpu().numpy())
    for variable in bundle.schema.variables:
        if variable.support is not None and variable.name in values:
            low, high = variable.support
            values[variable.name] = round(min(max(float(values[variable.name]), low), high), 1)
    return values


@torch.inference_mode()
def score_conditions(
    net: torch.nn.Module, schema: Schema, image: np.ndarray, device: torch.device
) -> dict[str, Any]:
    """As `predict_conditions`, uncut, as numbers: of two levels how much it looks like the second,
    0 to 1 about, of more levels (levels,) how much it looks like each."""
    out = _outputs(net, image, device).cpu().numpy()
    found: dict[str, Any] = {}
    at = 0
    for v in schema.variables:
        if v.added:
            continue
        if v.kind == "continuous":
            found[v.name] = out[at] * v.scale + v.center
        else:
            found[v.name] = (out[at] + 1) / 2 if v.width == 1 else out[at : at + v.width]
        at += v.width
    return found


def _outputs(net: torch.nn.Module, image: np.ndarray, device: torch.device) -> torch.Tensor:
    """Standardised conditions (outputs,) of an image (D, H, W)."""
    with autocast(device):
        out: torch.Tensor = net(torch.from_numpy(image)[None, None].to(device)).float()
    return out[0]
