"""The grid search of a drift, against distances whose minimum is known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.diffusion.drift import NO_DRIFT, Drift, parse_drift
from cfgen.edit.drift_search import GRID, HOW, curve_of, l1, sampled, search
from cfgen.edit.latent import load_models
from cfgen.jobs.drift_files import find_drift


def valley(lowest, noise=0.0, width=1.0, samples=12, scans=8):
    """Distances of a parabola, each sample and each scan off by its own amount, and by another one
    under each delta."""
    rng = np.random.default_rng(0)
    of_sample, of_scan = rng.normal(size=(samples, 1)), rng.normal(size=(1, scans))
    asked = []

    def distance(delta):
        asked.append(delta)
        own = np.random.default_rng(round(1e4 * delta) % 2**31).normal(size=(samples, 1))
        depth = width * (delta - lowest) ** 2
        return 5 + depth + 0.1 * (of_sample + of_scan) + noise * own

    return distance, asked


@pytest.mark.parametrize("lowest", [-0.04, 0.0, 0.055, 0.1])
def test_the_lowest_of_a_valley_is_found_and_refined(lowest):
    distance, asked = valley(lowest)
    curve = search(distance, 0)
    assert curve.best == pytest.approx(lowest, abs=0.0026)
    assert set(GRID) <= set(asked)
    assert len(asked) == len(set(asked))
    assert curve.needless == (lowest == 0)
    assert curve.chosen == (NO_DRIFT if lowest == 0 else Drift((curve.best,)))
    # Without noise every draw of samples and scans has the same minimum.
    assert curve.interval == (curve.best, curve.best)


@pytest.mark.parametrize("lowest", [0.37, -0.62])
def test_the_grid_widens_while_its_edge_wins(lowest):
    distance, asked = valley(lowest)
    curve = search(distance, 0)
    assert curve.best == pytest.approx(lowest, abs=0.03)
    assert min(abs(np.array(asked) - lowest)) < 0.03
    assert not any(abs(d) > abs(lowest) + 0.2 for d in asked)


def test_it_ends_at_the_last_delta_that_means_anything():
    distance, asked = valley(3.0)
    assert search(distance, 0).best == 1.0
    assert max(asked) == 1.0


def test_where_noise_is_larger_than_the_valley_none_is_as_good():
    curve = search(valley(0.04, noise=0.1)[0], 0)
    assert curve.needless
    assert curve.chosen == NO_DRIFT
    assert "no drift is as good, and is taken" in curve.text()
    low, high = curve.interval
    assert low < 0.04 < high or high - low > 0.05
    clear = search(valley(0.04, noise=1e-5)[0], 0)
    assert not clear.needless
    assert "nearer than none" in clear.text()


def test_the_interval_of_the_distance_is_that_of_both_draws():
    """Of many samples and scans the mean's variance is that of each, over how many there are."""
    samples, scans = 400, 300
    rng = np.random.default_rng(3)
    own = rng.normal(size=(samples, 1)) + rng.normal(size=(1, scans))
    curve = curve_of({0.0: own, 0.1: own + 1}, 0)
    width = float(curve.high[0] - curve.low[0])
    assert width == pytest.approx(2 * 1.96 * (1 / samples + 1 / scans) ** 0.5, rel=0.1)
    assert curve.gain == 0
    assert curve.best == 0


def test_l1_is_over_all_pairs():
    a = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).half()
    b = torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 3.0]]).half()
    assert l1(a, b).tolist() == [[1, 1, 2], [1, 1, 0]]


def test_the_search_is_written_and_taken_up(tiny_bundle, tmp_path, monkeypatch):
    """Of a model whose images are as bright as the drift says: scans of 0.03 are nearest there."""
    models = load_models(tiny_bundle, torch.device("cpu"))

    def bright(models, c, drift, seed):
        return torch.full((len(c), 10, 12, 11), drift.delta[0])

    monkeypatch.setattr("cfgen.edit.drift_search.sampled", bright)
    monkeypatch.setattr("cfgen.jobs.drift_files.sampled", bright)
    c, scans = torch.zeros(4, 2), torch.full((4, 10, 12, 11), 0.03)

    def found(seed=0, form="constant"):
        return find_drift(models, c, scans, ["a", "b", "c", "d"], "parent", seed, tmp_path, form)

    curve = found()
    assert curve.best == pytest.approx(0.03)
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["delta"]) for r in rows] == curve.deltas.tolist()
    assert [r["delta"] for r in rows if r["best"] == "best"] == ["0.03"]
    assert {p.name for p in tmp_path.iterdir()} == {
        *("curve.csv", "curve.png", "samples.png", "distances.json")
    }
    # The same question is answered from the file, another is not.
    record = json.loads((tmp_path / "distances.json").read_text())
    record["distances"] = (np.array(record["distances"]) + 1).tolist()
    (tmp_path / "distances.json").write_text(json.dumps(record))
    assert np.allclose(found().means, curve.means + 1)
    assert np.allclose(found(seed=1).means, curve.means)
    assert found(form="noise").chosen == parse_drift("noise:0.03")


def test_a_sample_depends_on_its_number_and_condition_alone(tiny_bundle):
    models, how = load_models(tiny_bundle, torch.device("cpu")), replace(HOW, steps=1)
    c = torch.tensor([[0.0, 1.0], [1.0, -1.0]])
    both = sampled(models, c, Drift(), 0, how)
    assert both.shape == (2, 80, 96, 88)
    assert torch.equal(sampled(models, c[:1], Drift(), 0, how)[0], both[0])
    assert not torch.equal(sampled(models, c[:1], Drift((0.1,)), 0, how)[0], both[0])
