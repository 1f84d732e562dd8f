"""Conditions: raw units in and out, and what an intervention means."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from cfgen.data.conditions import (
    Change,
    Intervention,
    Schema,
    Variable,
    default_schema,
    fit_schema,
    parse_interventions,
    parse_values,
    with_columns,
)
from cfgen.errors import ManifestError, UsageError

SCANNER = Variable("scanner", "categorical", levels=("GE", "Philips", "Siemens"))
APOE = Variable("apoe4", "continuous", low=0, high=2)
SCHEMA = Schema((*default_schema().variables, SCANNER, APOE))


@dataclass
class Known:
    values: dict = field(default_factory=dict)


def ages(*texts: str) -> list[Intervention]:
    return parse_interventions(SCHEMA, texts)


def test_two_levels_are_signs_and_three_are_one_hot():
    vector = SCHEMA.encode({"age": 70.0, "sex": "F", "scanner": "Philips", "apoe4": 1.0})
    np.testing.assert_array_equal(vector, np.float32([1, 1, 0, 1, 0, 1]))
    assert vector.dtype == np.float32
    assert SCHEMA.encode({"age": 50, "sex": "M", "scanner": "GE", "apoe4": 0})[1] == -1


def test_decode_undoes_encode():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = {
            "age": float(rng.uniform(0, 120)),
            "sex": str(rng.choice(["M", "F"])),
            "scanner": str(rng.choice(SCANNER.levels)),
            "apoe4": float(rng.uniform(0, 2)),
        }
        back = SCHEMA.decode(SCHEMA.encode(values))
        assert {k: v for k, v in back.items() if isinstance(v, str)} == {
            k: v for k, v in values.items() if isinstance(v, str)
        }
        # float32 carries seven digits.
        assert back["age"] == pytest.approx(values["age"], abs=1e-4)


def test_decode_cuts_to_plausible_values():
    assert default_schema().decode(np.float32([100, 0.1])) == {"age": 120.0, "sex": "F"}


def test_encode_names_what_is_missing():
    with pytest.raises(UsageError, match="sex and apoe4 missing"):
        SCHEMA.encode({"age": 50, "scanner": "GE"})


@pytest.mark.parametrize("text", ["F", "f", "female", "FEMALE", " Female "])
def test_sex_in_any_spelling(text):
    assert SCHEMA.check_value("sex", text, "--sex") == "F"


@pytest.mark.parametrize("text", ["1", "2", "2.0", "O", "", "woman", "-1"])
def test_sex_codes_are_not_guessed(text):
    with pytest.raises(UsageError, match="expected M or F"):
        SCHEMA.check_value("sex", text, "m.csv:3 column sex")


@pytest.mark.parametrize("text", ["62", " 62.0", "6.2e1", 62, np.float32(62), np.int64(62)])
def test_age_is_a_number_of_years(text):
    found = SCHEMA.check_value("age", text, "--from")
    assert found == 62.0
    assert type(found) is float


@pytest.mark.parametrize(
    "text", ["7O", "nan", "inf", "1_0", "62y", "89+", "40-45", "-1", "120.1", "744", "", True, "٣"]
)
def test_what_is_no_age_says_so(text):
    with pytest.raises(
        UsageError, match=r"m\.csv:17 column age.*number of years between 0 and 120"
    ):
        SCHEMA.check_value("age", text, "m.csv:17 column age")


def test_decimal_comma_gets_the_decimal_point():
    with pytest.raises(UsageError, match=r"write 38\.78"):
        SCHEMA.check_value("age", "38,78", "m.csv:2")


def test_unknown_variable_lists_the_known_and_the_nearest():
    with pytest.raises(UsageError, match="age, sex, scanner, apoe4; did you mean 'age'"):
        SCHEMA.check_value("Agee", 1, "--set")


def test_schema_survives_json():
    fitted = fit_schema([Known({"age": 20.0, "sex": "M"}), Known({"age": 60.0, "sex": "M"})])
    for schema in (SCHEMA, fitted):
        assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "missing 2 required.*name.*kind"),
        ({"name": "x", "kind": "number"}, "variable .x. has kind .number."),
        (
            {"name": "x", "kind": "categorical", "levels": ["a"]},
            "variable .x. has fewer than two levels",
        ),
    ],
)
def test_a_broken_schema_is_refused(entry, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Schema.from_json([entry])


def test_fit_standardises_the_training_rows():
    rng = np.random.default_rng(1)
    rows = [Known({"age": float(a), "sex": "F"}) for a in rng.uniform(20, 80, 40)]
    schema = fit_schema(rows)
    encoded = np.stack([schema.encode(r.values) for r in rows])[:, 0]
    assert encoded.mean() == pytest.approx(0, abs=1e-6)
    assert encoded.std() == pytest.approx(1, abs=1e-6)
    low, high = schema.variable("age").support
    assert (low, high) == (min(r.values["age"] for r in rows), max(r.values["age"] for r in rows))


def test_support_warns_just_outside_training():
    schema = fit_schema([Known({"age": 20.0, "sex": "F"}), Known({"age": 82.0, "sex": "F"})])
    assert schema.support_notices({"age": 82.0, "sex": "F"}) == []
    assert (
        "82.5 is outside the training range 20 to 82 years"
        in schema.support_notices({"age": 82.5})[0].text
    )
    assert "sex M was not in the training data" in schema.support_notices({"sex": "M"})[0].text


def test_fit_leaves_out_what_no_row_has():
    assert fit_schema([Known({"sex": "F"}), Known()]).names == ["sex"]
    with pytest.raises(ManifestError):
        fit_schema([Known()])


def test_signed_is_relative_and_unsigned_absolute():
    older, absolute = ages("+30", "75")
    assert older.apply({"age": 40.0, "sex": "F"}) == {"age": 70.0, "sex": "F"}
    assert absolute.apply({"age": 40.0, "sex": "F"}) == {"age": 75.0, "sex": "F"}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("-20:+40:10", ["age-20", "age-10", "age+0", "age+10", "age+20", "age+30", "age+40"]),
        ("20:80:20", ["age20", "age40", "age60", "age80"]),
        ("20:75:50", ["age20", "age70"]),
        ("+5:+5:1", ["age+5"]),
    ],
)
def test_ranges_have_both_ends(text, labels):
    assert [i.label() for i in ages(text)] == labels


def test_a_decimal_step_reaches_the_end_exactly():
    found = [i.apply({})["age"] for i in ages("20:21:0.1")]
    assert found == [round(20 + k / 10, 1) for k in range(11)]


@pytest.mark.parametrize(
    "text",
    ["20:80", "80:20:10", "20:80:0", "20:80:-5", "-20:40:10", "a:b:c", "1:2:3:4", "0:100:0.001"],
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UsageError, match="--age"):
        ages(text)


def test_the_same_age_twice_is_one_target():
    assert [i.label() for i in ages("+10", "10", "+10.0", "0:20:10")] == [
        "age+10",
        "age10",
        "age0",
        "age20",
    ]


def test_sex_and_sets_apply_to_every_age():
    found = parse_interventions(SCHEMA, ["-20", "75"], "female", ["apoe4=+1", "scanner=ge"])
    assert [i.label() for i in found] == [
        "age-20_sexF_apoe4+1_scannerGE",
        "age75_sexF_apoe4+1_scannerGE",
    ]


def test_labels_tell_absolute_from_relative_and_are_file_names():
    changes = [
        Change("age", 30.0, True),
        Change("age", 30.0),
        Change("age", -30.0, True),
        Change("age", -30.0),
        Change("apoe4", 3.0),
        Change("apoe", 43.0),
        Change("diagnosis", "a/b c"),
    ]
    labels = [c.label() for c in changes]
    assert len(set(labels)) == len(labels)
    assert not any(set(label) & set("/\\ :*?") for label in labels)


@pytest.mark.parametrize("zero", ["+0", "-0", "+0.0"])
def test_relative_zero_is_a_null_edit(zero):
    (intervention,) = ages(zero)
    assert intervention.is_null({"age": 62.3, "sex": "F"})
    assert intervention.label() == "age+0"


def test_null_means_nothing_changes_for_this_subject():
    (intervention,) = parse_interventions(SCHEMA, ["62"], "F")
    assert intervention.is_null({"age": 62.0, "sex": "F"})
    assert not intervention.is_null({"age": 62.0, "sex": "M"})
    assert not intervention.is_null({"sex": "F"})


def test_relative_age_outside_a_life_names_the_subjects_age():
    (intervention,) = ages("-40")
    with pytest.raises(UsageError, match="age 30 would become -10; expected years between 0"):
        intervention.apply({"age": 30.0})
    with pytest.raises(UsageError, match="age is unknown"):
        intervention.apply({"sex": "F"})


def test_absolute_age_outside_a_life_is_refused_at_once():
    with pytest.raises(UsageError, match="'121' is implausible"):
        ages("121")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to change"),
        ({"sex": "F", "sets": ["sex=M"]}, "sex given twice"),
        ({"ages": ["+1"], "sets": ["age=70"]}, "age given twice"),
        ({"sets": ["apoe4=1", "apoe4=1"]}, "apoe4 given twice"),
        ({"sets": ["apoe4"]}, "NAME=VALUE"),
        ({"sets": ["weight=3"]}, "unknown variable 'weight'"),
        ({"sex": "X"}, "--sex X"),
    ],
)
def test_interventions_that_make_no_sense(given, message):
    with pytest.raises(UsageError, match=message):
        parse_interventions(SCHEMA, **given)


def test_interventions_name_outputs_in_a_dict():
    assert len({i: i.label() for i in [*ages("+10"), *ages("+10"), *ages("10")]}) == 2


def test_parse_values():
    assert parse_values(SCHEMA, "age=62, sex=female", "--from") == {"age": 62.0, "sex": "F"}
    for text in ("age=62,age=63", "age", "age=62,", "age=old", "agee=3"):
        with pytest.raises(UsageError, match="--from"):
            parse_values(SCHEMA, text, "--from")


def test_columns_become_variables():
    """Numbers where every cell is one; the levels of anything else, in order."""
    cells = [{"ad": "0.5", "maker": "GE"}, {"ad": "0", "maker": "Siemens"}, {"maker": "GE"}]
    known = with_columns(default_schema(), ["ad", "maker"], cells)
    assert known.names == ["age", "sex", "ad", "maker"]
    assert known.variable("ad").kind == "continuous"
    assert known.variable("maker").levels == ("GE", "Siemens")
    with pytest.raises(ManifestError, match="column field: is in no row"):
        with_columns(default_schema(), ["field"], cells)
    with pytest.raises(ManifestError, match="says '3' in every row"):
        with_columns(default_schema(), ["field"], [{"field": "3"}, {"field": "3"}])
