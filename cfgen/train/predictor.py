"""Fit the predictor of age and sex: ridge on blurred voxels, on real scans alone.

A hundred scans are too few for a network: a small CNN that was trained for as long as the rest of
the bundle did no better than the mean age, where ridge has half of its error.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from cfgen.nets.predictors import Predictor, PredictorConfig
from cfgen.train.augmentation import mirror

log = logging.getLogger("cfgen")
FOLDS = 10
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


@torch.inference_mode()
def fit_predictor(images: Tensor, conditions: Tensor) -> tuple[Predictor, PredictorConfig]:
    """Ridge of conditions (N, V) on images (N, D, H, W) and their mirror images.

    The penalty is the one with the least squared error in ten-fold cross-validation by subject,
    over all standardised outputs.
    """
    d, h, w = images.shape[1:]
    config = PredictorConfig(conditions.shape[1], (d, h, w))
    net = Predictor(config)
    x = torch.cat([net.blurred(v[None, None].float()) for i in images for v in (i, mirror(i))])
    y = conditions.repeat_interleave(2, 0)
    centre, offset = x.mean(0), y.mean(0)
    x = x - centre
    gram = (x @ x.T).double()
    fold = torch.arange(len(images)).repeat_interleave(2) % FOLDS
    errors = {p: _held_out_error(gram, (y - offset).double(), fold, p) for p in PENALTIES}
    best = min(errors, key=lambda p: errors[p])
    log.info("predictor: penalty %g, squared error in cross-validation %.3f", best, errors[best])
    dual = torch.linalg.solve(gram + best * torch.eye(len(gram)), (y - offset).double()).float()
    weight = dual.T @ x
    net.head.weight.copy_(weight)
    net.head.bias.copy_(offset - weight @ centre)
    return net.eval(), config


def _held_out_error(gram: Tensor, y: Tensor, fold: Tensor, penalty: float) -> float:
    total = 0.0
    for k in range(FOLDS):
        held_out, rest = fold == k, fold != k
        if not held_out.any():
            continue
        inner = gram[rest][:, rest]
        dual = torch.linalg.solve(inner + penalty * torch.eye(len(inner)), y[rest])
        total += float((gram[held_out][:, rest] @ dual - y[held_out]).square().sum())
    return total / len(y)
