"""What an evaluation says of volumes that were due, of a year, and of what must not move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_record import PLAIN

from cfgen.causal.rates import yearly
from cfgen.data.grid import Grid
from cfgen.data.record import write_record
from cfgen.data.table import Row
from cfgen.edit.sidecar import RegionRecord
from cfgen.evaluate import controls
from cfgen.evaluate.controls import Floor, control_results, repeatability
from cfgen.evaluate.due import due_results
from cfgen.evaluate.figures import _years
from cfgen.evaluate.files import SENTENCES, intervals_text
from cfgen.evaluate.longitudinal import PARTS, WHOLES, within_people
from cfgen.evaluate.scans import Made, Real, Seen, copies
from cfgen.evaluate.tables import tables
from cfgen.metrics.result import Result
from cfgen.metrics.statistics import BCA, NORMAL

SHAPE = (8, 8, 8)
GRID = Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
REGIONS = ("lateral_ventricle", "hippocampus", "brainstem")


def seen(volumes: dict[str, float]) -> Seen:
    return Seen(np.zeros(SHAPE, np.float16), {}, np.zeros(4), volumes)


def person(k: int, **values: float | str) -> Real:
    """People differ in head size, and by 10 % in each region beside that."""
    draw = np.random.default_rng(k)
    tiv = 1.4e6 * np.exp(0.08 * draw.standard_normal())
    sizes = {"lateral_ventricle": 2e4, "hippocampus": 7e3, "brainstem": 2e4}
    volumes = {
        name: v * tiv / 1.4e6 * np.exp(0.1 * draw.standard_normal()) for name, v in sizes.items()
    }
    row = Row(f"s{k}", Path(f"/s{k}.nii.gz"), values={"age": 40.0 + 2 * k, "sex": "F"} | values)
    return Real(row, row.image, np.ones(SHAPE, bool), GRID, GRID, seen({**volumes, "tiv": tiv}))


def edited(r: Real, target: dict[str, float | str], percent: dict[str, float], image: Path) -> Made:
    """An edit after which volumes have changed by so many hundredths of the logarithm."""
    volumes = {n: v * np.exp(percent.get(n, 0.0) / 100) for n, v in r.seen.volumes.items()}
    values = {**r.row.values, **target}
    changed = tuple(n for n, v in values.items() if r.row.values[n] != v)
    row = replace(r.row, image=image, values=values)
    return Made(row, r, "edit", values, changed, seen(volumes))


def of(results: list[Result], metric: str, region: str = "", method: str = "ours") -> Result:
    (found,) = [r for r in results if (r.metric, r.region, r.method) == (metric, region, method)]
    return found


@pytest.fixture
def due(tmp_path) -> list[Made]:
    """The hippocampus was due to lose 4 to 11 %, and by the segmenter loses half of that; the
    record says that it ended 1 % above its target."""
    made = []
    for k in range(8):
        r, loss = person(k), 4.0 + k
        image = tmp_path / f"s{k}_age.nii.gz"
        m = edited(r, {"age": 70.0}, {"hippocampus": -loss / 2}, image)
        # The record is by another instrument.
        volume = 0.9 * r.seen.volumes["hippocampus"]
        target = volume * np.exp(-loss / 100)
        sides = [
            RegionRecord("hippocampus", side, volume / 2, target / 2, 1.01 * target / 2)
            for side in ("left", "right")
        ]
        record = replace(PLAIN, regions=[*sides, RegionRecord("brainstem", "both", 2e4)])
        write_record(record, tmp_path / f"s{k}_age.json")
        made.append(m)
    return made


def test_what_was_due_is_compared_with_what_was_reached(due):
    results = due_results("ours", due)
    assert {r.region for r in results} == {"hippocampus"}
    ratio = of(results, "achieved_over_target", "hippocampus")
    assert ratio.value == pytest.approx(1.01)
    assert (ratio.by, ratio.n) == ("sidecar", 8)
    slope = of(results, "change_over_due", "hippocampus")
    assert slope.value == pytest.approx(0.5)
    assert (slope.by, slope.better) == ("segmenter", "to 1")
    assert of(results, "change_of_due_sign", "hippocampus").value == 100
    # A copy is where its scan was, whatever stands in the sidecar of the edit.
    copied = due_results("copy", copies(due))
    assert of(copied, "change_over_due", "hippocampus", "copy").value == 0
    ratio = of(copied, "achieved_over_target", "hippocampus", "copy").value
    assert ratio == pytest.approx(np.mean(np.exp((4 + np.arange(8)) / 100)))
    text = tables([*results, *copied], ["copy", "ours"])
    assert "## Volumes that were due" in text
    assert "| hippocampus | ours | 8 | 1.01 " in text


def test_images_of_other_tools_have_nothing_due(due, tmp_path):
    (tmp_path / "s0_age.json").unlink()
    (tmp_path / "s1_age.json").write_text('{"Tool": "another"}')
    assert of(due_results("ours", due), "change_over_due", "hippocampus").n == 6
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert due_results("ours", due) == []


def test_a_year_of_grey_matter_is_that_of_its_parts_together():
    made = []
    for k in range(4):
        r = person(k, age=70.0 + k)
        sizes = dict.fromkeys(PARTS["grey"], 1000.0) | {"cortex": 9000.0, "tiv": 1.4e6}
        r = replace(r, seen=seen(sizes))
        made.append(edited(r, {"age": 80.0 + k}, {"cortex": -10.0}, Path("/x.nii")))
    results = within_people("ours", made, (*WHOLES[:2], "tiv"))
    others = 1000 * (len(PARTS["grey"]) - 1)
    lost = np.log((9000 * np.exp(-0.1) + others) / (9000 + others))
    assert of(results, "change_per_year", "grey").value == pytest.approx(10 * lost)
    assert of(results, "change_per_year", "tiv").value == 0
    assert abs(of(results, "change_per_year", "tiv", "real").value) < 0.1


def test_a_year_of_edits_beside_a_year_of_people():
    """Only edits in the ages of those people count: others lose nothing here."""
    made = []
    for k in range(12):
        old = k >= 4
        r = person(k, age=62.0 + k if old else 30.0)
        years = 10.0 if k % 2 else 20.0
        percent = {"hippocampus": -0.8 * years} if old else {}
        made.append(edited(r, {"age": float(r.row.values["age"]) + years}, percent, Path("/x.nii")))
    results = within_people("ours", made, (*REGIONS, "cortex_frontal"))
    ours = of(results, "change_per_year", "hippocampus")
    assert (ours.value, ours.n) == (pytest.approx(-0.8), 8)
    known = yearly("hippocampus")
    theirs = of(results, "change_per_year", "hippocampus", "real")
    assert theirs.value == known.percent
    assert (theirs.low, theirs.high) == pytest.approx(
        (known.percent - 1.96 * known.se, known.percent + 1.96 * known.se)
    )
    assert (theirs.interval, theirs.reference, theirs.n) == (NORMAL, "OASIS-2", 69)
    # A lobe was not measured by itself.
    assert {r.region for r in results} == set(REGIONS)
    assert within_people("ours", made[:4], REGIONS) == []
    assert "| hippocampus | real | 69 |" in tables(results, ["ours"])
    said = [text for holds, text in SENTENCES if any(holds(r) for r in results)]
    assert ["[@marcus2010]" in text for text in said] == [True]
    assert f"Those of change_per_year are {NORMAL}." in intervals_text(results)
    assert _years(results) is not None
    assert _years([r for r in results if r.method == "real"]) is None


def test_the_floor_is_what_measuring_again_makes(monkeypatch):
    """An instrument that sees one side larger."""
    image = np.random.default_rng(0).random(SHAPE) * np.linspace(1, 1.02, 8)[:, None, None]

    def lopsided(tools, image, prepared):
        weight = np.linspace(1, 1.1, 8)[:, None, None]
        return {"brainstem": float((image * weight).sum()), "tiv": float(image.sum())}

    monkeypatch.setattr(controls, "volumes_of", lopsided)
    monkeypatch.setattr(Real, "prepared", lambda r: SimpleNamespace(image=image))
    people = [replace(person(k), seen=seen(lopsided(None, image, None))) for k in range(4)]
    floor = repeatability(None, people, ("brainstem", "tiv"))
    assert floor.people == 4
    scanned = 2 * 0.005**2
    assert floor.log_change["tiv"] == pytest.approx(1.96 * np.sqrt(scanned))
    one = [lopsided(None, again(image), None)["brainstem"] for again in controls.AGAINS]
    ratios = np.log(np.array(one) / lopsided(None, image, None)["brainstem"])
    expected = 1.96 * np.sqrt((ratios**2).mean() + scanned)
    assert floor.log_change["brainstem"] == pytest.approx(expected)
    assert (ratios**2).mean() > 0


FLOOR = Floor(5, dict.fromkeys((*REGIONS, "tiv"), 0.01))


def test_what_moves_beyond_the_floor_is_seen():
    people = [person(k) for k in range(8)]
    x = Path("/x.nii")
    good = [edited(r, {"age": 80.0}, {"brainstem": 0.2, "hippocampus": -9}, x) for r in people]
    bad = [edited(r, {"age": 80.0}, {"brainstem": -3.0 - k}, x) for k, r in enumerate(people)]
    first, second = (control_results("ours", m, people, REGIONS, FLOOR) for m in (good, bad))
    # The hippocampus is no control of age.
    assert {r.region for r in first} == {"tiv", "brainstem"}
    assert of(first, "control_change", "brainstem").value == pytest.approx(0.2)
    assert of(first, "control_beyond_floor", "brainstem").value == 0
    assert of(second, "control_change", "brainstem").value == pytest.approx(-6.5)
    assert of(second, "control_change", "brainstem").interval == BCA
    assert of(second, "control_beyond_floor", "brainstem").value == 100
    assert of(second, "control_beyond_floor", "tiv").value == 0
    floor = of(first, "control_floor", "brainstem", "real")
    assert (floor.value, floor.n) == (pytest.approx(1.0), 5)
    assert "## Negative controls" in tables(first, ["ours"])
    assert control_results("ours", [], people, REGIONS, FLOOR) == []


@pytest.mark.parametrize(
    ("name", "well", "ill"), [("diagnosis", "control", "depression"), ("mdd", 0.0, 1.0)]
)
def test_depression_must_show_next_to_nothing(name, well, ill):
    """A change of 0.1 of the spread between people has a d of 0.1, towards the condition and away
    from it; head size and age are held, as studies do."""
    people = [person(k, **{name: ill if k % 2 else well}) for k in range(40)]
    made = []
    for r in people:
        away = r.row.values[name] == ill
        change = {"hippocampus": 1.0 if away else -1.0, "lateral_ventricle": 0.0}
        made.append(edited(r, {name: well if away else ill}, change, Path("/x.nii")))
    wide = Floor(5, dict.fromkeys(REGIONS, 0.02))
    results = control_results("ours", made, people, REGIONS, wide)
    assert of(results, "control_change", "hippocampus").value == pytest.approx(-1)
    # Regions differ by 10 % between people of one head size.
    assert of(results, "control_d", "hippocampus").value == pytest.approx(-0.1, abs=0.03)
    assert of(results, "control_d", "lateral_ventricle").value == 0
    largest = of(results, "control_largest_d")
    assert largest.value == pytest.approx(0.1, abs=0.03)
    assert "hippocampus" in largest.note
    assert "0.14" in largest.reference
    assert of(results, "control_beyond_floor", "hippocampus").value == 0
    said = [text for holds, text in SENTENCES if any(holds(r) for r in results)]
    assert any("[@schmaal2016]" in text for text in said)
    # A column that the bundle does not know says it as well.
    for k, m in enumerate(made):
        real, row = (
            replace(r, values={"age": 1.0}, extra={name: str(r.values[name])})
            for r in (m.real.row, m.row)
        )
        made[k] = replace(m, row=row, real=replace(m.real, row=real), changed=())
    again = control_results("ours", made, people, REGIONS, wide)
    assert (
        of(again, "control_d", "hippocampus").value == of(results, "control_d", "hippocampus").value
    )
    # Another condition is none of these, and two at once say nothing.
    two = [edited(r, {name: ill, "age": 90.0}, {}, Path("/x.nii")) for r in people[::2]]
    assert control_results("ours", two, people, REGIONS, FLOOR) == []
