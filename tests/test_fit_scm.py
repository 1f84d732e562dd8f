"""`cfgen fit-scm`: graphs of four languages, tables of three tools, and what is refused."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from cfgen.bundle import read_bundle
from cfgen.causal.causal_graph import Declared, Sketch, in_order, spread_out
from cfgen.causal.graph_files import default_graph, read_graph
from cfgen.causal.scm import load_scm
from cfgen.causal.scm_check import decade_slope
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.data.cohort_table import read_cohort_table, train_rows
from cfgen.data.regions import table
from cfgen.data.volume_columns import recognise
from cfgen.errors import CfgenError, ManifestError, UsageError
from cfgen.sim.graph import PLAIN

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "scm.py"))
DATA = Path(__file__).parents[2] / "shared" / "data" / "tables"

TOML = """
[age]
[sex]
[tiv]
parents = ["sex"]
[hippocampus]
parents = ["age", "sex", "tiv"]
"""
DOT = """digraph G {
  rankdir = LR; node [shape=box];  // how it is drawn
  age; sex -> tiv [color="red"];
  {age sex tiv} -> hippocampus
}"""
DAGITTY = """dag {
bb="-4,-4,4,4"
age [exposure,pos="-1.2,0.5"]
sex [pos="0,1"]
tiv
hippocampus [outcome,pos="1,1"]
sex -> tiv
age -> hippocampus
hippocampus <- sex
tiv -> hippocampus
}"""
GML = """graph [
  directed 1
  node [ id 0 label "age" ] node [ id 1 label "sex" ]
  node [ id 2 label "tiv" graphics [ x 1.0 ] ]
  node [ id 3 label "hippocampus" ]
  edge [ source 1 target 2 ] edge [ source 0 target 3 ]
  edge [ source 1 target 3 ] edge [ source 2 target 3 ]
]"""


def written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [("g.toml", TOML), ("g.dot", DOT), ("g.dagitty", DAGITTY), ("g.txt", DAGITTY), ("g.gml", GML)],
)
def test_one_graph_in_four_languages(tmp_path, name, text):
    nodes = read_graph(written(tmp_path, name, text)).nodes
    parents = {n: set(d.parents) for n, d in nodes.items()}
    assert parents == {
        "age": set(),
        "sex": set(),
        "tiv": {"sex"},
        "hippocampus": {"age", "sex", "tiv"},
    }


def test_attributes_say_what_a_table_cannot(tmp_path):
    text = 'digraph { field_tesla [kind=discrete, intercept=true]; "head size" -> "a b" }'
    nodes = read_graph(written(tmp_path, "g.dot", text)).nodes
    assert nodes["field_tesla"] == Declared((), "discrete", intercept=True)
    assert nodes["a b"].parents == ("head size",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.dot", "graph { a -- b }", "without directions"),
        ("g.dot", "digraph {\na -> b\nb <-> c\n}", "g.dot:3: b <-> c has no single direction"),
        ("g.dot", "digraph {\na -> b", "g.dot:2: ends inside the graph"),
        ("g.txt", "dag { u [latent] u -> a }", "'u' is latent"),
        ("g.toml", "[a]\nparent = ['b']", r"\[a\] has an unknown key 'parent'"),
        ("g.toml", "[a]\nkind = 'number'", "continuous or discrete or volume"),
        ("g.toml", "a = [", "is no TOML"),
        ("g.gml", "graph [ directed 0 ]", "without directions"),
        ("g.gml", "graph [ directed 1 node [ id 1 ] edge [ source 1 target 2 ] ]", "node '2'"),
        ("g.xml", "", "ends in '.xml'"),
        ("g.dot", "digraph { }", "has no nodes"),
    ],
)
def test_graphs_that_are_none_are_refused_by_line(tmp_path, name, text, said):
    with pytest.raises(UsageError, match=said):
        read_graph(written(tmp_path, name, text))


def test_a_cycle_is_printed():
    with pytest.raises(UsageError, match="has a cycle: a -> b -> c -> a"):
        in_order({"x": (), "a": ("c", "x"), "b": ("a",), "c": ("b",)})


def test_unknown_parents_and_absent_regions_are_named():
    sketch = Sketch({"age": Declared(), "hippocampus": Declared(("agee",))})
    with pytest.raises(UsageError, match=r"unknown parent 'agee'.*did you mean 'age'"):
        spread_out(sketch, ["hippocampus"], ["age", "hippocampus"])
    sketch = Sketch({"age": Declared(), "insula": Declared(("age",))})
    with pytest.raises(UsageError, match="no column for insula"):
        spread_out(sketch, [], ["age"])


def test_the_default_graph_takes_what_the_table_has():
    columns = ["age", "sex", "tiv", "hippocampus", "thalamus"]
    nodes = spread_out(default_graph(), columns[2:], columns).nodes
    assert list(nodes) == ["age", "sex", "tiv", "hippocampus", "thalamus"]
    assert nodes["thalamus"].parents == ("age", "sex", "tiv")
    with_site = spread_out(default_graph(), columns[2:], [*columns, "site", "diagnosis"]).nodes
    assert with_site["tiv"].parents == ("sex", "site")
    assert with_site["thalamus"].parents == ("age", "sex", "site", "diagnosis", "tiv")
    assert with_site["site"].intercept


def test_head_size_is_a_parent_of_every_volume():
    sketch = Sketch({"age": Declared(), "tiv": Declared(), "thalamus": Declared(("age",))})
    nodes = spread_out(sketch, ["tiv", "thalamus"], ["age", "tiv", "thalamus"]).nodes
    assert nodes["thalamus"].parents == ("age", "tiv")


# Tables.


def test_volumes_in_the_names_of_three_tools():
    codes = [f"MUSE_{c}" for c, r in table("dlmuse").items() if r.group not in ("background",)]
    found = recognise(["subject", *codes, "MUSE_702", "MUSE_601"])
    assert found.names == "DLMUSE"
    assert set(found.parts["hippocampus"]) == {"MUSE_47", "MUSE_48"}
    assert set(found.parts["lateral_ventricle"]) == {"MUSE_51", "MUSE_52"}
    assert found.parts["tiv"] == ("MUSE_702",)
    assert "MUSE_601" not in found.rest["csf"]
    fs = recognise(["Left-Hippocampus", "Right-Hippocampus", "Left-Caudate", "CSF", "eTIV",
                    "CerebralWhiteMatterVol", "CC_Anterior"])  # fmt: skip
    assert fs.names == "FreeSurfer"
    assert fs.parts["hippocampus"] == ("Left-Hippocampus", "Right-Hippocampus")
    assert fs.parts["cerebral_wm"] == ("CerebralWhiteMatterVol",)
    assert fs.parts["tiv"] == ("eTIV",)
    # Half a structure is none, and FreeSurfer's CSF is a sliver of it.
    assert not {"caudate", "csf"} & set(fs.parts)
    assert recognise(["age", "thalamus", "tiv"]).parts == {
        "thalamus": ("thalamus",),
        "tiv": ("tiv",),
    }


@pytest.fixture(scope="module")
def people():
    columns = BENCHMARK["People"](0, 120, 5, PLAIN).columns
    return {n: v for n, v in columns.items() if n not in ("ad", "aud")}


def lines_of(people):
    n = len(people["age"])
    return [{"subject": f"s{i:03d}", **{k: str(v[i]) for k, v in people.items()}} for i in range(n)]


def save(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), restval="")
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_the_long_table_is_joined_by_subject(people, tmp_path):
    lines = lines_of(people)[:30]
    long = [
        {"subject": line["subject"], "session": "", "structure": "hippocampus", "side": side,
         "volume_mm3": "1", "soft_volume_mm3": str(float(line["hippocampus"]) / 2)}
        for line in lines for side in ("left", "right")
    ]  # fmt: skip
    long += [
        {**long[0], "subject": line["subject"], "structure": "tiv", "side": "both",
         "volume_mm3": line["tiv"], "soft_volume_mm3": ""}
        for line in lines
    ]  # fmt: skip
    short = [{k: line[k] for k in ("subject", "age", "sex")} for line in lines]
    found = read_cohort_table(save(tmp_path / "c.csv", short), save(tmp_path / "v.csv", long))
    assert found.columns["hippocampus"] == pytest.approx(people["hippocampus"][:30])
    assert found.columns["tiv"] == pytest.approx(people["tiv"][:30])
    with pytest.raises(ManifestError, match="give it as --volumes"):
        read_cohort_table(tmp_path / "v.csv")


def test_measured_volumes_stand_in_place_of_the_tables_own(people, tmp_path):
    lines = lines_of(people)[:30]
    long = [
        {"subject": line["subject"], "structure": name, "side": "both",
         "volume_mm3": str(2 * float(line[name]))}
        for line in lines[1:] for name in ("hippocampus", "tiv")
    ]  # fmt: skip
    table = save(tmp_path / "c.csv", lines)
    read = read_cohort_table(table, save(tmp_path / "v.csv", long))
    assert read.volumes == ("hippocampus", "tiv")
    assert np.isnan(read.columns["hippocampus"][0])
    assert read.columns["hippocampus"][1:] == pytest.approx(2 * people["hippocampus"][1:30])
    long = [
        {**line, "subject": "nobody", "structure": s} for line, s in zip(long, "abc", strict=False)
    ]
    with pytest.raises(ManifestError, match="none of the table's people"):
        read_cohort_table(table, save(tmp_path / "v.csv", long))
    faulty = [{**long[0], "volume_mm3": "-1"}, {**long[1], "volume_mm3": ""}]
    with pytest.raises(ManifestError, match=r"2 faults\n.*v.csv:2.*'-1'.*\n.*v.csv:3.*missing"):
        read_cohort_table(table, save(tmp_path / "v.csv", faulty))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hippocampus": lambda v: v / 1000}, "column hippocampus seems to be in mL"),
        ({"tiv": lambda v: v / 8}, "column tiv seems to be in voxels or another unit"),
        ({"age": lambda v: v * 365.25}, "age"),
        ({"hippocampus": lambda v: -v}, "c.csv:2 column hippocampus: '-"),
    ],
)
def test_columns_in_another_unit_are_refused(people, tmp_path, change, said):
    columns = people | {n: f(people[n]) for n, f in change.items()}
    with pytest.raises(ManifestError, match=said):
        read_cohort_table(save(tmp_path / "c.csv", lines_of(columns)))


def test_only_the_train_split_is_learned_from(people, tmp_path):
    lines = [
        {**line, "split": "train" if i % 3 else "val"} for i, line in enumerate(lines_of(people))
    ]
    found = train_rows(read_cohort_table(save(tmp_path / "c.csv", lines)))
    assert len(found.subjects) == 80
    assert found.sources[0] == "c.csv:3"
    nobody = [{**line, "split": "test"} for line in lines]
    with pytest.raises(ManifestError, match="no row has split 'train'"):
        train_rows(read_cohort_table(save(tmp_path / "c.csv", nobody)))


@pytest.mark.skipif(not DATA.exists(), reason="real tables are not on this machine")
def test_ixi_and_what_its_parts_add_up_to():
    found = read_cohort_table(DATA / "ixi" / "IXI_DLMUSE_277_no_heldout.csv")
    whole = sum(found.columns[n] for n in found.volumes if n != "tiv")
    assert whole == pytest.approx(found.columns["tiv"], rel=1e-6)
    assert set(found.columns["sex"]) == {"M", "F"}
    assert set(found.columns["site"]) == {"Guys", "HH", "IOP"}


# The command.


def test_a_table_becomes_a_part_of_a_bundle(cfgen, people, tiny_bundle, tmp_path):
    cohort = save(tmp_path / "c.csv", lines_of(people))
    out = tmp_path / "out"
    command = ("fit-scm", "--table", cohort, "--bundle", tiny_bundle.path, "--out", out,
               "--members", 2, "--prior", "none")  # fmt: skip
    code, said, _ = cfgen(*command, "--dry-run")
    assert (code, out.exists()) == (0, False)
    assert said.startswith("120 people; age, sex, tiv, lateral_ventricle")
    code, said, error = cfgen(*command, "--check", "--json")
    assert code == 0, error
    report = json.loads(said)
    assert report["round_trip"] < 1e-9
    assert report["categories_kept"]
    assert report["equations"][2].startswith("ln tiv = ")
    assert set(report["held_out"]) == {"sex", *people}
    slopes = report["slopes_log_percent_a_decade"]["lateral_ventricle"]
    model = load_scm(read_bundle(out))
    assert slopes["60"][0] == pytest.approx(100 * decade_slope(model, "lateral_ventricle", 60))
    assert model.graph.node("age").support == pytest.approx(
        (people["age"].min(), people["age"].max())
    )
    assert len(model.members) == 2
    code, _, error = cfgen(*command)
    assert code != 0
    assert "--overwrite" in error
    code, said, _ = cfgen(*command, "--overwrite", "--check")
    assert code == 0
    assert "ln hippocampus = " in said
    assert said.splitlines()[-1] == str(out)


def test_missing_values_are_refused_by_line_or_averaged_over(cfgen, people, tiny_bundle, tmp_path):
    lines = lines_of(people)
    lines[4]["hippocampus"] = lines[7]["sex"] = lines[9]["tiv"] = "n/a"
    cohort = save(tmp_path / "c.csv", lines)
    command = ("fit-scm", "--table", cohort, "--bundle", tiny_bundle.path, "--prior", "none",
               "--out", tmp_path / "out", "--members", 0)  # fmt: skip
    code, _, error = cfgen(*command)
    assert code == 2
    for text in ("c.csv:6 column hippocampus", "c.csv:9 column sex", "--missing"):
        assert text in error
    allowed = [x for name in ("hippocampus", "sex", "tiv") for x in ("--missing", name)]
    code, _, error = cfgen(*command, *allowed)
    assert code == 0, error
    full = np.array([float(line["hippocampus"]) for line in lines if line["hippocampus"] != "n/a"])
    low, _ = load_scm(read_bundle(tmp_path / "out")).graph.node("hippocampus").support
    assert low == pytest.approx(full.min())
    lines[3]["age"] = ""
    save(cohort, lines)
    code, _, error = cfgen(*command, *allowed, "--missing", "age")
    assert code == 2
    assert "'age' is a number and no volume" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mechanism", "gp"), "'linear', 'flow'"),
        (("--knots", "40,30"), "rising ages"),
        (("--missing", "amygdala"), "not in the graph"),
        (("--graph", "cycle.dot"), "has a cycle: age -> hippocampus -> age"),
        (("--graph", "few.dot"), "no column for amygdala"),
    ],
)
def test_bad_options(cfgen, people, tiny_bundle, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "cycle.dot", "digraph { age -> hippocampus -> age }")
    written(tmp_path, "few.dot", "digraph { age -> amygdala }")
    save(tmp_path / "c.csv", lines_of(people))
    code, _, error = cfgen(
        "fit-scm", "--table", "c.csv", "--bundle", tiny_bundle.path, "--out", "out", *options
    )
    assert code == 2
    assert said in error
    assert not (tmp_path / "out").exists()


def test_women_alone_have_a_law(cfgen, people, tiny_bundle, tmp_path):
    lines = [line | {"site": "A"} for line in lines_of(people) if line["sex"] == "F"]
    code, said, error = cfgen(
        "fit-scm", "--table", save(tmp_path / "c.csv", lines), "--bundle", tiny_bundle.path,
        "--out", tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert code == 0, error
    assert said.split("; ")[1].startswith("age, tiv, lateral_ventricle")


def test_a_flow_of_a_small_graph(cfgen, people, tiny_bundle, tmp_path):
    cohort = save(tmp_path / "c.csv", lines_of(people))
    graph = written(tmp_path, "g.dagitty", DAGITTY)
    code, said, error = cfgen(
        "fit-scm", "--table", cohort, "--bundle", tiny_bundle.path, "--out", tmp_path / "out",
        "--graph", graph, "--mechanism", "flow", "--members", 1, "--prior", "none", "--json",
    )  # fmt: skip
    assert code == 0, error
    report = json.loads(said)
    assert set(report["held_out"]) == {"age", "sex", "tiv", "hippocampus"}
    assert report["round_trip"] < 1e-5


def test_the_shipped_law_is_ixis():
    """Signs that nobody doubts, inside the ages that were seen, and no person in the file."""
    bundle = read_bundle(DEFAULT_BUNDLE)
    model = load_scm(bundle)
    assert bundle.part("scm").trained["people"] == 316
    assert set(model.graph.node("site").levels) == {"Guys", "HH", "IOP"}
    for age in (30.0, 50.0, 70.0):
        assert decade_slope(model, "lateral_ventricle", age) > 0.08
        assert decade_slope(model, "third_ventricle", age) > 0.08
        assert decade_slope(model, "cortex_frontal", age) < -0.02
        assert decade_slope(model, "thalamus", age) < -0.01
    assert decade_slope(model, "hippocampus", 70.0) < -0.02
    assert (DEFAULT_BUNDLE / "scm.safetensors").stat().st_size < 60_000


def test_errors_are_cfgens(tmp_path):
    with pytest.raises(CfgenError):
        read_graph(tmp_path / "nothing.toml")


OWN = "subject,age,sex,tiv,thalamus,hippocampus,caudate\n" + "".join(
    f"s{i},{40 + i},{'FM'[i % 2]},{1400000 + 9000 * (i % 7)},15000,{7000 + 40 * (i % 5)},\n"
    for i in range(20)
)


@pytest.mark.parametrize(
    ("change", "graph", "said"),
    [
        (("7040", ""), "", "4 missing values; expected a value in every line"),
        (("", ""), " ", "has no volume of a region"),
        (("", ""), "[age]\n[caudate]\n", "column caudate has no value"),
        (("sex,tiv", "split,tiv"), "", "no row has split 'train'; found F, M"),
    ],
)
def test_faults_of_an_own_table_say_what_to_do(cfgen, tmp_path, change, graph, said):
    (tmp_path / "own.csv").write_text(OWN.replace(*change) if change[0] else OWN)
    (tmp_path / "graph.toml").write_text(graph)
    more = ("--graph", tmp_path / "graph.toml") if graph else ()
    asked = ("fit-scm", "--table", tmp_path / "own.csv", "--out", tmp_path / "fitted", "--dry-run")
    code, _, err = cfgen(*asked, *more)
    assert code == 2
    assert said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.toml", "own.csv"]


def test_a_column_that_is_empty_throughout_is_none(cfgen, tmp_path):
    (tmp_path / "own.csv").write_text(OWN)
    asked = ("fit-scm", "--table", tmp_path / "own.csv", "--out", tmp_path / "fitted", "--dry-run")
    code, out, err = cfgen(*asked)
    assert code == 0, err
    assert out.strip().endswith("age, sex, tiv, thalamus, hippocampus")
    (tmp_path / "own.csv").write_text(OWN.replace("hippocampus", "hipocampus"))
    code, _, err = cfgen(*asked)
    assert code == 0
    assert "own.csv: column hipocampus is no region, did you mean hippocampus?" in err
    code, _, err = cfgen(*asked, "--bundle", tmp_path / "nowhere")
    assert code == 4
    assert "nowhere" in err
