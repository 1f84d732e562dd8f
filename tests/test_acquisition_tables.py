"""Tables of edited acquisitions: of edits that are the truth, and of scans as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

MODULES = ("acquisition_tables", "acquisition_readable", "acquisition_people", "cycle_people")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import acquisition_tables

    yield acquisition_tables
    for name in MODULES:
        sys.modules.pop(name, None)


def protocol(person):
    field = 3.0 if person % 2 else 1.5
    return {"manufacturer": "AB"[person % 2], "field_tesla": field, "sequence": "MPRAGE"}


def line(person, of, **more):
    """A person whose image looks as the protocol of `of` makes it look."""
    field = protocol(of)["field_tesla"]
    read = {"manufacturer": [0.9 if of % 2 else 0.1], "field_tesla": [field + 0.1]}
    return {"person": person, "protocol": protocol(person), "read": read, **more}


def looks(draw, lines):
    """Two features, the first of which is the field strength that the image shows."""
    shown = np.array([x["read"]["field_tesla"][0] for x in lines])
    return np.stack([shown, np.zeros(len(lines))], 1) + 0.1 * draw.standard_normal((len(lines), 2))


def measured(tables, draw, lines):
    return tables.Measured(lines, looks(draw, lines), draw.standard_normal((len(lines), 3)))


def edits(of_target):
    """Of 20 people to the protocol of the next: images that look so, or as they did."""
    return [
        line(
            n,
            n + 1 if of_target else n,
            target="another's",
            own=protocol(n),
            mae=0.0 if of_target else 0.2,
            nothing=0.2,
            bias=0.0,
            ssim=1.0,
            ssim_scan=1.0,
            ssim_shuffled=0.5,
            explained=1.0,
        )
        | {"protocol": protocol(n + 1)}
        for n in range(20)
    ]


def test_the_truth_fools_both_probes_and_a_copy_none(tables, tmp_path):
    draw = np.random.default_rng(0)
    own = measured(tables, draw, [line(n, n) for n in range(20)])
    real = measured(tables, draw, [line(n, n) | {"person": f"training {n}"} for n in range(40)])
    found = {"beside/truth": measured(tables, draw, edits(True))}
    found["beside/nothing"] = measured(tables, draw, edits(False))
    near, fooled, points = tables.summary(found, own, real)
    assert [row.split("|")[2].strip() for row in near.splitlines()[2:]] == ["0.00", "1.00"]
    truth, copy = (row.split("|")[2:] for row in fooled.splitlines()[2:])
    assert truth[0].strip() == "100 %"
    assert copy[0].strip() == "0 %"
    # Field strengths are read 0.1 too high, or 1.5 beside; their variance is 0.75^2.
    assert float(truth[2]) == pytest.approx(0.1**2 / 0.75**2, abs=0.01)
    _, _, share, told = points["beside/truth"]
    assert share > 0.9
    assert told < 0.75
    assert points["beside/nothing"][2:] == pytest.approx((0.0, 1.0), abs=0.05)
    tables.pareto(points, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_what_is_measured_is_read_as_it_was_kept(tables, tmp_path):
    draw = np.random.default_rng(1)
    lines = [line(n, n) for n in range(4)]
    (tmp_path / "own.json").write_text(json.dumps(lines))
    np.savez(tmp_path / "own.npz", appearance=looks(draw, lines), embedding=np.ones((4, 3)))
    own = tables.load(tmp_path / "own.json")
    assert own.features.shape == (4, 5)
    assert own.only(lambda x: x["person"] > 2).lines == lines[3:]


def test_predictor_and_trees_stand_beside_what_can_be_read(tables, monkeypatch):
    import acquisition_readable

    monkeypatch.setattr(acquisition_readable, "SCANNERS", 4000)
    draw = np.random.default_rng(2)
    own, training = (measured(tables, draw, [line(n, n) for n in range(size)]) for size in (20, 80))
    rows = tables.judged(own, training).splitlines()[2:]
    found = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in rows}
    scans, predictor, looked, most, usual = found["manufacturer, accuracy"]
    assert (scans, predictor, looked, usual) == ("20", "100 %", "100 %", "50 %")
    # Makers whose protocols overlap cannot all be told.
    assert 50 < float(most.removesuffix(" %")) < 80
    _, predictor, looked, most, variance = found["field_tesla, MSE"]
    assert (predictor, variance) == ("0.01", "0.562")
    assert float(looked) < 0.05
    # The strength of the coil's field alone gives it away.
    assert float(most) < 0.01
