"""Conditions read from the image by the bundle's predictor."""

from __future__ import annotations

import numpy as np
import torch

from cfgen.bundle import Bundle
from cfgen.jobs.device import autocast, channels_last
from cfgen.jobs.models import load_weights, tuples
from cfgen.nets.predictors import Predictor, PredictorConfig


def load_predictor(bundle: Bundle, device: torch.device) -> torch.nn.Module:
    """Raises BundleError when the bundle has no predictor."""
    net = Predictor(PredictorConfig(**tuples(bundle.part("predictor").config)))
    load_weights(net, bundle, "predictor")
    return channels_last(net, device).eval()


@torch.inference_mode()
def predict_conditions(
    bundle: Bundle, image: np.ndarray, device: torch.device
) -> dict[str, float | str]:
    """Every condition of the schema in raw units, from an image (D, H, W) on the model grid.

    Numbers are cut to the range seen in training: beyond it a prediction knows nothing.
    """
    net = load_predictor(bundle, device)
    with autocast(device):
        out = net(torch.from_numpy(image)[None, None].to(device)).float()
    values = bundle.schema.decode(out[0].cpu().numpy())
    for variable in bundle.schema.variables:
        if variable.support is not None:
            low, high = variable.support
            values[variable.name] = round(min(max(float(values[variable.name]), low), high), 1)
    return values
