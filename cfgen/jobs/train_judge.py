"""Add the judge of counterfactuals to a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cfgen.bundle import (
    Bundle,
    copy_bundle,
    net_config,
    read_bundle,
    write_part,
)
from cfgen.config import JUDGE_NETWORKS, FitConfig
from cfgen.device import pick_device
from cfgen.measure.judge import pack, unpack
from cfgen.measure.judge_errors import error_lines, judge_errors
from cfgen.nets.judge import Judge
from cfgen.processes import count, leads, number
from cfgen.train.fit import fit
from cfgen.train.judge import JudgeTask, judge_config, settle
from cfgen.train.judge_data import raw, read_judge_data, usual
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import join, wait

log = logging.getLogger("cfgen")


def train_judge(
    manifest: Path,
    names: Sequence[str],
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    networks: int = JUDGE_NETWORKS,
) -> Bundle:
    """Add the judge of counterfactuals to a bundle: `networks` CNNs, on real train scans alone.

    `names` are the targets (`judge_data.read_judge_data`). What the networks err by on the val
    split is said and goes into the part; nothing is chosen by it. The norms of a network look at
    whole batches: of several processes each trains networks of its own, and the first writes.
    """
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    targets, train, val = read_judge_data(manifest, names, bundle.preprocess.grid)
    log.info("judge: %d scans to learn from, %d to be measured on", len(train.rows), len(val.rows))
    # Other targets, or targets of other scans, are another run.
    digest = hashlib.sha256(json.dumps(targets.to_json()).encode()).hexdigest()[:8]

    def trained(n: int) -> Judge:
        network_fit = replace(config, seed=config.seed + n)
        log.info("judge: network %d of %d", n + 1, networks)
        task = JudgeTask(targets, train, val, torch_device, network_fit)
        folder = runs_folder(out, "judge") / f"{digest}-seed{network_fit.seed}"
        net = fit(task, network_fit, folder, shared=False)
        assert isinstance(net, Judge)
        settle(net, train.images, torch_device)
        return net

    own = {n: trained(n) for n in range(networks) if n % count() == number()}
    join(torch_device)
    wait()
    if not leads():
        return bundle
    # What others trained is on disk, whole: there is nothing left to do but to read it.
    nets = [own[n] if n in own else trained(n) for n in range(networks)]
    tensors, network = pack(nets), judge_config(targets, train.images.shape[1:])
    # The weights are measured as they are shipped: rounded to half precision.
    guesses = unpack(tensors, network, networks, targets, torch_device).judge_each(val.images)
    errors = judge_errors(guesses, raw(targets, val.targets), targets, usual(targets, train))
    for line in error_lines(errors, targets):
        log.info("judge on %d real scans of val: %s", len(val.rows), line)
    description = {
        **net_config(network),
        "seeds": networks,
        "targets": targets.to_json(),
        "val": errors,
    }
    saw = trained_on(train.rows, config)
    return write_part(copy_bundle(bundle, out), "judge", tensors, description, saw)
