"""`cfgen counterfactual --table`: a law whose answers are known in closed form, file to file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgen.bundle import Bundle, copy_bundle, read_bundle, write_part
from cfgen.causal.causal_graph import CausalGraph, Node
from cfgen.causal.centiles import centile
from cfgen.causal.design import Design, Term
from cfgen.causal.mechanisms import Categorical, Linear
from cfgen.causal.rates import within
from cfgen.causal.scm import PART, Scm, load_scm
from cfgen.causal.worlds import counterfactual, interval, outside, settable
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.data.conditions import Change, Intervention, default_schema, parse_interventions
from cfgen.data.people_table import read_people
from cfgen.errors import ManifestError, UsageError
from cfgen.jobs.counterfactual_table import Asked, answer, question

# d ln V / d year of age, and what AUD does.
SLOPES = {"hippocampus": -0.004, "lateral_ventricle": 0.03}
AUD = {"hippocampus": -0.05, "lateral_ventricle": 0.1}
CENTRE_MM3 = {"hippocampus": 7500.0, "lateral_ventricle": 20000.0}
SUPPORT = {"hippocampus": (5000.0, 9500.0), "lateral_ventricle": (5000.0, 90000.0)}


def law(slopes=SLOPES, members=()) -> Scm:
    """ln V = ln centre + slope (age - 50) + AUD + ln(tiv / 1.4 L) + 0.1 e."""
    age = Term("age", "number", 50.0, 1.0)
    sex = Term("sex", "levels", levels=("F", "M"), shares=(0.5, 0.5))
    ill = Term("diagnosis", "levels", levels=("AUD", "HC"), shares=(0.0, 1.0))
    head = Term("tiv", "volume", centre=1.4e6)
    nodes = [
        Node("age", "continuous", "years", support=(40.0, 86.0)),
        Node("sex", "discrete", levels=("F", "M")),
        Node("diagnosis", "discrete", levels=("AUD", "HC")),
        Node("tiv", "volume", "mm3", parents=("sex",), support=(1.1e6, 1.8e6)),
    ]
    root = Design(())
    mechanisms = {
        "age": Linear(root, np.array([50.0]), np.zeros(0), 15.0, False),
        "sex": Categorical(root, ("F", "M"), np.zeros((2, 1))),
        "diagnosis": Categorical(root, ("AUD", "HC"), np.zeros((2, 1))),
        "tiv": Linear(Design((sex,)), np.array([np.log(1.4e6), 0.12]), np.zeros(1), 0.08, True),
    }
    design = Design((age, ill, head))
    for name, slope in slopes.items():
        parents = ("age", "diagnosis", "tiv")
        nodes.append(Node(name, "volume", "mm3", parents=parents, support=SUPPORT[name]))
        # The second level, HC, is the coded one.
        beta = np.array([np.log(CENTRE_MM3[name]), slope, -AUD[name], 1.0])
        spreading = sum(design.spreading)
        mechanisms[name] = Linear(design, beta, np.zeros(spreading), 0.1, True)
    return Scm(CausalGraph(tuple(nodes)), mechanisms, members)


def ensemble(n: int = 12, spread: float = 0.001) -> tuple:
    rng = np.random.default_rng(0)
    laws = []
    for _ in range(n):
        off = rng.standard_normal() * spread
        drawn = law({name: slope + off for name, slope in SLOPES.items()})
        laws.append({name: drawn.mechanisms[name] for name in SLOPES})
    return tuple(laws)


PEOPLE = {
    "age": np.array([62.0, 45.0]),
    "sex": np.array(["F", "M"]),
    "diagnosis": np.array(["HC", "HC"]),
    "tiv": np.array([1.35e6, 1.6e6]),
    "hippocampus": np.array([7000.0, 8200.0]),
    "lateral_ventricle": np.array([24000.0, 15000.0]),
}
COLUMNS = ("subject", *PEOPLE)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def wide(path: Path, **changes: object) -> Path:
    rows = [{"subject": f"00{i + 1}"} | {k: v[i] for k, v in PEOPLE.items()} for i in range(2)]
    rows[0] |= changes
    return write(path, rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scm_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    copied = copy_bundle(tiny_bundle, tmp_path_factory.mktemp("bundles") / "law")
    tensors, config = law(members=ensemble()).to_tensors()
    return write_part(copied, PART, tensors, config, {})


# The law.


def test_an_age_moves_every_volume_by_its_slope():
    do = {"age": PEOPLE["age"] + 15}
    after = counterfactual(law(), PEOPLE, do, "cohort")
    for name, slope in SLOPES.items():
        np.testing.assert_allclose(after[name] / PEOPLE[name], np.exp(15 * slope), rtol=1e-9)
    np.testing.assert_allclose(after["tiv"], PEOPLE["tiv"], rtol=1e-12)


def test_within_scales_the_part_of_age_alone():
    """ln V'/V = rho * slope * years + what AUD does."""
    do = {"age": PEOPLE["age"] + 15, "diagnosis": np.array(["AUD", "AUD"])}
    after = counterfactual(law(), PEOPLE, do, "within")
    for name, slope in SLOPES.items():
        due = within(name).value * 15 * slope + AUD[name]
        np.testing.assert_allclose(np.log(after[name] / PEOPLE[name]), due, rtol=1e-9)
    # Without an age there is nothing to scale.
    ill = {"diagnosis": do["diagnosis"]}
    for rates in ("cohort", "within"):
        after = counterfactual(law(), PEOPLE, ill, rates)
        np.testing.assert_allclose(after["hippocampus"] / PEOPLE["hippocampus"], np.exp(-0.05))


def test_a_volume_that_is_set_is_what_it_is_set_to():
    do = {"age": PEOPLE["age"] + 15, "hippocampus": 0.9 * PEOPLE["hippocampus"]}
    after = counterfactual(law(), PEOPLE, do, "within")
    np.testing.assert_allclose(after["hippocampus"], 0.9 * PEOPLE["hippocampus"])
    free = counterfactual(law(), PEOPLE, {"age": do["age"]}, "within")
    np.testing.assert_allclose(after["lateral_ventricle"], free["lateral_ventricle"])


@pytest.mark.parametrize("rates", ["cohort", "within"])
def test_there_and_back_is_nowhere(rates):
    there = counterfactual(law(), PEOPLE, {"age": PEOPLE["age"] + 20}, rates)
    back = counterfactual(law(), there, {"age": PEOPLE["age"]}, rates)
    for name in SLOPES:
        np.testing.assert_allclose(back[name], PEOPLE[name], rtol=1e-9)


def test_the_interval_is_the_spread_of_the_slopes():
    """A slope that is uncertain by s leaves ln V' uncertain by s times the years."""
    sure = law(members=ensemble(400))
    do = {"age": PEOPLE["age"] + np.array([20.0, 10.0])}
    ends = interval(sure, PEOPLE, do, "cohort", seed=0)
    low, high = ends["hippocampus"]
    width = np.log(high / low) / 2
    np.testing.assert_allclose(width, 1.96 * 0.001 * np.array([20.0, 10.0]), rtol=0.12)
    after = counterfactual(sure, PEOPLE, do, "cohort")["hippocampus"]
    np.testing.assert_allclose(np.sqrt(low * high), after, rtol=1e-9)
    # A person's own rate is known less well still.
    low, high = interval(sure, PEOPLE, do, "within", seed=0)["hippocampus"]
    assert (np.log(high / low) / 2 > width).all()
    assert interval(law(), PEOPLE, do, "cohort", seed=0) == {}


def test_what_is_set_for_nothing_has_no_width():
    low, high = interval(law(members=ensemble()), PEOPLE, {"age": PEOPLE["age"]}, "cohort", 0)[
        "hippocampus"
    ]
    np.testing.assert_allclose(low, PEOPLE["hippocampus"], rtol=1e-9)
    np.testing.assert_allclose(high, PEOPLE["hippocampus"], rtol=1e-9)


def test_outside_names_what_training_did_not_see():
    strange = PEOPLE | {"age": np.array([90.0, 45.0]), "tiv": np.array([1.35e6, np.nan])}
    assert outside(law().graph, strange, 0) == ["age 90 above 86"]
    assert outside(law().graph, strange, 1) == []


# What may be set.


def interventions(*sets: str, ages: tuple[str, ...] = ()) -> list[Intervention]:
    variables = settable(law().graph, default_schema())
    return parse_interventions(variables, ages, None, sets)


def test_volumes_are_set_in_percent_in_mm3_and_by_mm3():
    values = {"hippocampus": 7000.0, "lateral_ventricle": 24000.0}
    change = interventions("hippocampus=-10%", "lateral_ventricle=30000")[0]
    assert change.apply(values) == {"hippocampus": 6300.0, "lateral_ventricle": 30000.0}
    assert change.label() == "hippocampus-10pct_lateral_ventricle30000"
    assert interventions("hippocampus=+250")[0].apply(values)["hippocampus"] == 7250.0
    assert interventions("hippocampus=+0%")[0].is_null(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lateral_ventricle=30", "looks like mL"),
        ("hippocampus=7.4", "write 7400"),
        ("lateral_ventricle=+2", r"looks like mL.*write \+2000"),
        ("hippocampus=10%", "has no sign"),
        ("hippocampus=-100%", "leaves nothing"),
        ("age=+10%", "percent of age"),
        ("hipocampus=-10%", "did you mean 'hippocampus'"),
        ("hippocampus=-x%", "is not a number"),
        ("diagnosis=MDD", "AUD or HC"),
    ],
)
def test_what_cannot_be_set_says_why(text, said):
    with pytest.raises(UsageError, match=said):
        interventions(text)


def test_a_change_in_percent_keeps_to_the_limits():
    change = interventions("hippocampus=+3000%")[0]
    with pytest.raises(UsageError, match=r"would become 217000.*mm3 between 500 and 95000"):
        change.apply({"hippocampus": 7000.0})
    with pytest.raises(UsageError, match="unknown"):
        Intervention((Change("hippocampus", -10.0, percent=True),)).apply({})


# The table that is read.

VARIABLES = settable(law().graph, default_schema())


def test_wide_and_long_tables_say_the_same(tmp_path):
    first = read_people(wide(tmp_path / "wide.csv"), VARIABLES, {})
    lines = []
    for i in range(2):
        known = {"subject": f"00{i + 1}", "session": ""}
        told = {k: PEOPLE[k][i] for k in ("age", "sex", "diagnosis")}
        for name in ("hippocampus", "lateral_ventricle"):
            half = float(PEOPLE[name][i]) / 2
            for side in ("left", "right"):
                volume = {"volume_mm3": half + 50, "soft_volume_mm3": half}
                lines.append(known | {"structure": name, "side": side} | volume | told)
        whole = {"structure": "tiv", "side": "both", "volume_mm3": PEOPLE["tiv"][i]}
        lines.append(known | whole | {"soft_volume_mm3": ""} | told)
    second = read_people(write(tmp_path / "long.csv", lines), VARIABLES, {})
    assert [p.values for p in first] == [p.values for p in second]
    assert [p.subject for p in second] == ["001", "002"]


def test_other_tools_names_are_read(tmp_path):
    """DLMUSE's codes, by side; a cell that is missing or no number is the structure's fault."""
    rows = []
    for i in range(2):
        half = {k: float(PEOPLE[k][i]) / 2 for k in SLOPES}
        rows.append(
            {"subject": f"00{i + 1}"}
            | {k: PEOPLE[k][i] for k in ("age", "sex", "diagnosis")}
            | {"47": half["hippocampus"], "48": half["hippocampus"], "35": 2e4, "4": 900}
            | {"51": half["lateral_ventricle"] - 9, "52": half["lateral_ventricle"] + 9}
            | {"702": PEOPLE["tiv"][i]}
        )
    people = read_people(write(tmp_path / "dlmuse.csv", rows), VARIABLES, {})
    assert [p.values for p in people] == [
        {k: v[i].item() for k, v in PEOPLE.items()} for i in range(2)
    ]
    rows[0] |= {"47": "n/a", "52": "many"}
    with pytest.raises(ManifestError) as error:
        read_people(write(tmp_path / "dlmuse.csv", rows), VARIABLES, {})
    assert "dlmuse.csv:2 column hippocampus: missing" in str(error.value)
    assert "column lateral_ventricle: 'many' is not a number" in str(error.value)


def test_conditions_may_stand_in_a_manifest_or_be_said(tmp_path):
    volumes = [
        {"subject": f"00{i + 1}"}
        | {k: PEOPLE[k][i] for k in ("tiv", "hippocampus", "lateral_ventricle")}
        for i in range(2)
    ]
    table = write(tmp_path / "volumes.csv", volumes)
    who = [{"subject": s, "age": a, "sex": x} for s, a, x in (("002", 45, "m"), ("001", 62, "f"))]
    manifest = write(tmp_path / "cohort.csv", who)
    people = read_people(table, VARIABLES, {"diagnosis": "HC"}, manifest)
    assert [p.values for p in people] == [
        {k: v[i].item() for k, v in PEOPLE.items()} for i in range(2)
    ]
    short = write(tmp_path / "short.csv", who[:1])
    with pytest.raises(ManifestError, match=r"volumes.csv:2 column subject: '001' is not in short"):
        read_people(table, VARIABLES, {"diagnosis": "HC"}, short)


def test_every_fault_is_listed_by_its_line(tmp_path):
    table = wide(tmp_path / "in.csv", hippocampus="7.1", tiv="", age="sixty")
    with pytest.raises(ManifestError) as error:
        read_people(table, VARIABLES, {})
    text = str(error.value)
    assert "3 faults" in text
    assert "in.csv:2 column hippocampus: '7.1' looks like mL" in text
    assert "in.csv:2 column tiv: missing; expected a number of mm3" in text
    assert "in.csv:2 column age: 'sixty' is not a number" in text


def test_an_absent_region_and_what_may_be_it_are_named(tmp_path, caplog):
    rows = [
        {("hipocampus" if k == "hippocampus" else k): v for k, v in row.items()}
        for row in read(wide(tmp_path / "in.csv"))
    ]
    table = write(tmp_path / "in.csv", rows)
    with pytest.raises(ManifestError, match=r"no region hippocampus.*rename 'hipocampus'"):
        read_people(table, VARIABLES, {})
    rows = [{k: v for k, v in row.items() if k != "diagnosis"} for row in rows]
    with pytest.raises(ManifestError, match=r"--from diagnosis=.*--missing"):
        read_people(
            write(tmp_path / "in.csv", rows),
            VARIABLES,
            {},
            missing=["hippocampus"],
        )


def test_unknown_columns_are_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "cfgen.data.people_table.log.warning", lambda text, *a: said.append(text % a)
    )
    read_people(wide(tmp_path / "in.csv", shoe_size=44, split="train"), VARIABLES, {})
    assert said == ["in.csv: column shoe_size is unknown and left alone"]


def test_what_may_be_unknown_acts_as_the_average(tmp_path):
    """No head size: the hippocampus still has an answer, and a centile among its own sex."""
    table = wide(tmp_path / "in.csv", tiv="", diagnosis="never heard of", lateral_ventricle="")
    asked = Asked(ages=["+15"], missing=["tiv", "diagnosis", "lateral_ventricle"])
    lines = answer(law(), question(law(), default_schema(), table, asked)).lines
    assert lines[0]["tiv"] == lines[0]["diagnosis"] == lines[0]["lateral_ventricle"] == ""
    assert lines[0]["lateral_ventricle_centile"] == ""
    assert float(lines[0]["hippocampus"]) == pytest.approx(7000 * np.exp(-0.06), abs=0.06)
    assert float(lines[0]["hippocampus_centile_factual"]) == pytest.approx(
        centile("hippocampus", "F", 62, 7000), abs=0.06
    )
    with pytest.raises(UsageError, match="--missing"):
        question(law(), default_schema(), table, replace(asked, missing=["age"]))


# The table that is written.


def test_a_line_a_person_and_world(tmp_path):
    asked = Asked(ages=["-10:+10:10"])
    whole = question(law(), default_schema(), wide(tmp_path / "in.csv"), asked)
    lines = answer(law(members=ensemble()), whole).lines
    assert [(x["subject"], x["world"]) for x in lines] == [
        (s, w) for s in ("001", "002") for w in ("age-10", "age+0", "age+10")
    ]
    noise = law().abduct(PEOPLE)
    for line in lines:
        i = int(line["subject"]) - 1
        years = float(line["world"].removeprefix("age"))
        assert float(line["age"]) == PEOPLE["age"][i] + years
        assert float(line["age_factual"]) == PEOPLE["age"][i]
        for name, slope in SLOPES.items():
            due = PEOPLE[name][i] * np.exp(slope * years)
            assert float(line[name]) == pytest.approx(due, abs=0.06)
            assert float(line[f"{name}_low95"]) <= float(line[name])
            assert float(line[name]) <= float(line[f"{name}_high95"])
            assert float(line[f"noise_{name}"]) == pytest.approx(noise[name][i], abs=1e-5)
            tiv = PEOPLE["tiv"][i]
            place = centile(name, "F", float(line["age"]), due, tiv)
            written = line[f"{name}_centile"]
            assert (
                written == "" if place is None else float(written) == pytest.approx(place, abs=0.1)
            )
    # 45 - 10 years lie below the training's 40.
    low = next(x for x in lines if x["subject"] == "002" and x["world"] == "age-10")
    assert (low["in_support"], low["outside_support"]) == ("no", "counterfactual age 35 below 40")


def test_a_world_that_somebody_cannot_be_in_is_left_out_for_them_alone(tmp_path):
    asked = Asked(ages=["-50"])
    answers = answer(law(), question(law(), default_schema(), wide(tmp_path / "in.csv"), asked))
    assert [line["subject"] for line in answers.lines] == ["001"]
    assert len(answers.failed) == 1
    assert "in.csv:3 002" in answers.failed[0]
    assert "-5" in answers.failed[0]


def test_the_other_sex_keeps_the_head_unless_it_is_to_follow(tmp_path):
    """ln tiv differs by 0.12 between the sexes, and volumes go with it."""
    table = wide(tmp_path / "in.csv")
    scm, asked = law(members=ensemble()), Asked(sex="M")
    kept = answer(scm, question(scm, default_schema(), table, asked)).lines
    asked = replace(asked, scale_head=True)
    followed = answer(scm, question(scm, default_schema(), table, asked)).lines
    # The second is a man already.
    for i, (a, b, moved) in enumerate(zip(kept, followed, (np.exp(0.12), 1.0), strict=True)):
        for name in ("tiv", *SLOPES):
            assert float(a[name]) == pytest.approx(PEOPLE[name][i], rel=1e-4)
            assert float(b[name]) == pytest.approx(PEOPLE[name][i] * moved, rel=1e-4)


def test_an_unknown_head_is_kept_too(tmp_path):
    table, scm = wide(tmp_path / "in.csv", tiv=""), law(members=ensemble())
    asked = Asked(sex="M", missing=["tiv"])
    (line, _) = answer(scm, question(scm, default_schema(), table, asked)).lines
    assert line["tiv"] == line["tiv_low95"] == line["tiv_high95"] == ""
    for end in ("", "_low95", "_high95"):
        assert float(line[f"hippocampus{end}"]) == pytest.approx(PEOPLE["hippocampus"][0], rel=1e-4)
    asked = replace(asked, scale_head=True)
    (line, _) = answer(scm, question(scm, default_schema(), table, asked)).lines
    assert float(line["hippocampus"]) > 1.1 * PEOPLE["hippocampus"][0]


def test_the_command(cfgen, scm_bundle, tmp_path):
    table, out = wide(tmp_path / "in.csv"), tmp_path / "out.csv"
    ask = ["counterfactual", "--bundle", scm_bundle.path, "--table", table, "--age", "+15"]
    ask += ["--set", "diagnosis=AUD", "--rates", "within", "--out", out, "--json"]
    code, said, _ = cfgen(*ask, "--dry-run")
    assert code == 0
    assert not out.exists()
    code, said, error = cfgen(*ask)
    assert (code, error) == (0, "")
    assert json.loads(said)["outputs"] == [str(out), str(out.with_suffix(".json"))]
    lines = read(out)
    assert [line["world"] for line in lines] == ["age+15_diagnosisAUD"] * 2
    due = within("hippocampus").value * 15 * -0.004 - 0.05
    assert float(lines[0]["hippocampus"]) == pytest.approx(7000 * np.exp(due), rel=1e-4)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["Synthetic"] is True
    assert record["Rates"] == "within"
    assert "one person changes" in record["RatesMeaning"]
    assert record["Ratios"][1]["Structure"] == "hippocampus"
    assert record["People"] == 2
    assert cfgen(*ask)[0] == 2
    assert cfgen(*ask, "--overwrite")[0] == 0


def test_answers_are_a_question_again(cfgen, scm_bundle, tmp_path):
    """15 years on and 15 back: the first table, to its decimals."""
    first, on, back = wide(tmp_path / "in.csv"), tmp_path / "on.csv", tmp_path / "back.csv"
    ask = ["counterfactual", "--bundle", scm_bundle.path]
    assert cfgen(*ask, "--table", first, "--age", "+15", "--out", on)[0] == 0
    code, _, error = cfgen(*ask, "--table", on, "--age=-15", "--out", back)
    assert (code, error) == (0, "")
    for before, after in zip(read(first), read(back), strict=True):
        for name in SLOPES:
            assert float(after[name]) == pytest.approx(float(before[name]), abs=0.11)


def test_what_the_command_refuses(cfgen, scm_bundle, tiny_bundle, tmp_path):
    table = wide(tmp_path / "in.csv")
    ask = ["counterfactual", "--table", table, "--age", "+5"]
    here = ["--bundle", scm_bundle.path]
    code, _, error = cfgen(*ask, *here)
    assert (code, "a table (.csv or .tsv)" in error) == (2, True)
    assert cfgen(*ask, *here, "--out", tmp_path / "out.nii.gz")[0] == 2
    assert cfgen(*ask, *here, "--in", table, "--out", tmp_path / "out.csv")[0] == 2
    assert cfgen("counterfactual", "--in", table, "--age", "+5", "--missing", "site")[0] == 2
    code, _, error = cfgen(*ask, "--bundle", tiny_bundle.path, "--out", tmp_path / "out.csv")
    assert (code, "has no part 'scm'" in error) == (4, True)
    code, _, error = cfgen(*ask[:-2], "--age=-50", *here, "--out", tmp_path / "out.csv")
    assert (code, "in.csv:3 002" in error) == (1, True)


def test_a_site_that_nobody_speaks_of_is_unknown_by_itself(cfgen, tmp_path):
    scm = load_scm(read_bundle(DEFAULT_BUNDLE))
    regions = {n.name: sum(n.support) / 2 for n in scm.graph.nodes if n.kind == "volume"}
    table, out = tmp_path / "own.csv", tmp_path / "out.csv"
    names, cells = ",".join(regions), ",".join(f"{v:.1f}" for v in regions.values())
    table.write_text(f"subject,age,sex,{names}\n1,60,F,{cells}\n")
    asked = ("counterfactual", "--table", table, "--age", "+15", "--out", out)
    code, _, err = cfgen(*asked)
    assert code == 0, err
    assert "own.csv: site is unknown" in err
    by_name = out.read_text()
    assert cfgen(*asked, "--missing", "site", "--overwrite")[0] == 0
    assert out.read_text() == by_name
    table.write_text(f"subject,age,sex,site,{names}\n1,60,F,,{cells}\n")
    code, _, err = cfgen(*asked, "--overwrite")
    assert code == 2
    assert "own.csv:2 column site: missing" in err


@pytest.mark.parametrize("option", ["--diff", "--report", "--field", "--move-noise", "--depth=0"])
def test_what_is_of_images_is_not_asked_of_a_table(cfgen, tmp_path, option):
    asked = ("counterfactual", "--table", tmp_path / "x.csv", "--age", "+5", option)
    code, _, err = cfgen(*asked, "--out", tmp_path / "out.csv")
    assert code == 2
    assert f"{option.partition('=')[0]}: beside --table" in err
