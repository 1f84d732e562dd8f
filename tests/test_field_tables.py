"""Tables as the field writes them: read as they are meant, or refused by name; never misread."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cfgen.data.bids import bids_values
from cfgen.data.conditions import Schema, default_schema
from cfgen.data.manifest import read_manifest, write_manifest
from cfgen.data.names import check_outputs
from cfgen.data.table import Row
from cfgen.errors import ManifestError, Notice, UsageError

SCHEMA = default_schema()
HEADER = "participant_id\tage\tsex\n"


def dataset(folder: Path, table: str, *visits: str, subject: str = "sub-01") -> list[Path]:
    """A BIDS folder of one subject with an empty T1w for each visit ('' is none)."""
    (folder / "participants.tsv").write_text(table)
    return [scan(folder, subject, visit) for visit in visits or ("",)]


def scan(folder: Path, subject: str, visit: str = "") -> Path:
    anat = folder / subject / visit / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    image = anat / f"{subject}_{f'{visit}_' if visit else ''}T1w.nii.gz"
    image.touch()
    return image


def describe(folder: Path, **columns: Any) -> None:
    (folder / "participants.json").write_text(json.dumps(columns))


def sidecar(image: Path, **fields: Any) -> None:
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text(json.dumps(fields))


def both(folder: Path, image: Path) -> dict[str, Any]:
    """The conditions of the one scan, which are the same as a manifest's and beside the image."""
    (row,) = read_manifest(folder, SCHEMA)
    beside, _ = bids_values(image, SCHEMA)
    assert row.values == beside
    return beside


def manifest(folder: Path, header: str, *lines: str) -> Path:
    (folder / "a.nii.gz").touch()
    path = folder / "m.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def faults(path: Path) -> str:
    with pytest.raises(ManifestError) as error:
        read_manifest(path, SCHEMA)
    return str(error.value)


@pytest.mark.parametrize("column", ["session_id", "session", "ses", "visit"])
@pytest.mark.parametrize("names", [("ses-01", "ses-02"), ("01", "02"), ("1", "2"), ("1.0", "2.0")])
def test_a_line_a_visit_gives_each_visit_its_own_age(tmp_path, column, names):
    one, two = names
    table = f"participant_id\t{column}\tage\tsex\nsub-01\t{two}\t66\tF\nsub-01\t{one}\t62\tF\n"
    images = dataset(tmp_path, table, "ses-01", "ses-02")
    rows = {r.session: r.values for r in read_manifest(tmp_path, SCHEMA)}
    assert rows == {"ses-01": {"age": 62.0, "sex": "F"}, "ses-02": {"age": 66.0, "sex": "F"}}
    assert [bids_values(image, SCHEMA)[0] for image in images] == [rows["ses-01"], rows["ses-02"]]


def test_a_visit_without_a_line_has_no_age_of_another(tmp_path, caplog):
    table = "participant_id\tsession_id\tage\tsex\nsub-01\tses-1\t62\tF\nsub-01\tses-3\t70\tF\n"
    _, second = dataset(tmp_path, table, "ses-1", "ses-2")
    with caplog.at_level(logging.WARNING):
        rows = {r.session: r.values for r in read_manifest(tmp_path, SCHEMA)}
    assert rows == {"ses-1": {"age": 62.0, "sex": "F"}, "ses-2": {"sex": "F"}}
    assert bids_values(second, SCHEMA)[0] == {"sex": "F"}
    assert "no line for ses-2" in caplog.text
    assert "left out: sub-01 ses-3" in caplog.text


def test_the_sex_that_one_line_says_holds_for_all_visits(tmp_path):
    table = "participant_id\tsession_id\tage\tsex\nsub-01\tses-1\t62\tF\nsub-01\tses-2\t66\tn/a\n"
    images = dataset(tmp_path, table, "ses-1", "ses-2")
    assert [r.values["sex"] for r in read_manifest(tmp_path, SCHEMA)] == ["F", "F"]
    assert [bids_values(image, SCHEMA)[0]["sex"] for image in images] == ["F", "F"]
    dataset(tmp_path, table.replace("n/a", "M"))
    assert [bids_values(image, SCHEMA)[0]["sex"] for image in images] == ["F", "M"]


def test_a_line_without_a_session_speaks_of_the_visits_that_have_none(tmp_path):
    table = "participant_id\tsession_id\tage\nsub-01\tn/a\t60\nsub-01\tses-2\t66\n"
    dataset(tmp_path, table, "ses-1", "ses-2")
    assert [r.values["age"] for r in read_manifest(tmp_path, SCHEMA)] == [60.0, 66.0]


def test_a_single_scan_takes_its_one_line_whatever_the_session(tmp_path):
    (image,) = dataset(tmp_path, "participant_id\tsession_id\tage\nsub-01\tses-01\t62\n")
    assert both(tmp_path, image) == {"age": 62.0}


def test_a_manifest_of_visits_may_call_them_session_id(tmp_path):
    path = manifest(tmp_path, "subject,session_id,image,age", "1,a,a.nii.gz,62", "1,b,a.nii.gz,66")
    rows = read_manifest(path, SCHEMA)
    assert [(r.session, r.values["age"], r.extra) for r in rows] == [("a", 62, {}), ("b", 66, {})]


@pytest.mark.parametrize(
    ("entry", "age"),
    [
        ({"units": "months"}, 8.0),
        ({"UNITS": "Month(s)"}, 8.0),
        ({"Units": "mo"}, 8.0),
        ({"Unit": "weeks"}, 96 * 7 / 365.25),
        ({"Units": "days"}, 96 / 365.25),
        ({"Units": "decimal years"}, 96.0),
        ({"Units": "Jahre"}, 96.0),
        ({"Description": "Age in months at scan"}, 8.0),
        ({"Description": "Age (months)"}, 8.0),
        ({"LongName": "age in completed weeks"}, 96 * 7 / 365.25),
        ({"Description": "Edad en meses"}, 8.0),
        ({"Description": "Alter in Monaten"}, 8.0),
        ({"Description": "months since birth"}, 8.0),
        ({"Description": "Age on the day of the scan"}, 96.0),
        ({"Description": "Age in years, at the visit after 6 months"}, 96.0),
        ({"Description": "Age of the participant", "Units": "n/a"}, 96.0),
        ({"UnitOfMeasurement": "months"}, 8.0),
        ({"Description": "Age", "Comment": "in months"}, 8.0),
        # Nothing says for sure what is meant.
        ({"Description": "Age in months, converted to years"}, None),
        ({"Description": "Age; scans were made within 30 days"}, None),
        ({"Description": "Postmenstrual age at scan, weeks"}, None),
        ({"Units": "gestational weeks"}, None),
        ({"Units": "years", "Description": "Age in months"}, None),
        ({"Units": "m"}, None),
        ({"Units": "decades"}, None),
    ],
)
def test_other_units_become_years_or_leave_the_age_unknown(tmp_path, caplog, entry, age):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t96\tF\n")
    describe(tmp_path, Age=entry)
    values = both(tmp_path, image)
    assert values.get("age") == (age if age is None else pytest.approx(age))
    assert ("taken as unknown" in caplog.text) == (age is None)


def test_a_description_that_is_only_a_sentence_is_read(tmp_path):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t96\tF\n")
    describe(tmp_path, age="in months")
    assert both(tmp_path, image)["age"] == 8.0


def test_the_units_of_all_subjects_sessions_stand_in_the_root(tmp_path):
    (image,) = dataset(tmp_path, "participant_id\tsex\nsub-01\tF\n", "ses-1")
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\n1\t96\n")
    (tmp_path / "sessions.json").write_text('{"age": {"Units": "months"}}')
    assert both(tmp_path, image) == {"age": 8.0, "sex": "F"}


def test_a_column_of_units_speaks_for_its_row(tmp_path):
    path = manifest(tmp_path, "subject,image,age,age_units", "1,a.nii.gz,96,months")
    assert read_manifest(path, SCHEMA)[0].values == {"age": 8.0}
    path = manifest(tmp_path, "subject,image,age,age_units", "1,a.nii.gz,96,lustra")
    assert "unit 'lustra'; expected years, months, weeks or days" in faults(path)


@pytest.mark.parametrize("blank", ["000Y", "000D", "0Y", 0, "0", "000", 0.0])
def test_a_zero_in_a_header_is_no_age(tmp_path, caplog, blank):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t62\tF\n")
    sidecar(image, PatientAge=blank, PatientSex="F")
    assert bids_values(image, SCHEMA) == ({"age": 62.0, "sex": "F"}, "participants.tsv")
    assert caplog.text == ""
    dataset(tmp_path, "participant_id\tsex\nsub-01\tF\n")
    assert bids_values(image, SCHEMA)[0] == {"sex": "F"}
    assert f"'{blank}' is what anonymisation leaves of an age" in caplog.text


def test_a_blanked_age_in_a_table_is_none_and_a_newborns_is_one(tmp_path):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t000Y\tF\n")
    assert both(tmp_path, image) == {"sex": "F"}
    dataset(tmp_path, HEADER + "sub-01\t0\tF\n")
    assert both(tmp_path, image) == {"age": 0.0, "sex": "F"}


def test_the_table_is_believed_before_the_header_alone_and_in_a_manifest(tmp_path, caplog):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t62.3\tF\n")
    sidecar(image, PatientAge="025Y", PatientSex="F")
    with caplog.at_level(logging.WARNING):
        assert both(tmp_path, image) == {"age": 62.3, "sex": "F"}
    alone = "sub-01_T1w.json: age 25 contradicts 62.3 of participants.tsv, which is taken"
    assert alone in caplog.text
    assert "sidecar: age 25 contradicts 62.3 of the table, which is taken" in caplog.text


@pytest.mark.parametrize(("age", "said"), [("61", False), ("63", False), ("63.1", True)])
def test_only_more_than_a_year_is_a_contradiction(tmp_path, caplog, age, said):
    image = tmp_path / "a.nii.gz"
    path = manifest(tmp_path, "subject,image,age", f"1,a.nii.gz,{age}")
    sidecar(image, PatientAge="062Y")
    read_manifest(path, SCHEMA)
    assert ("contradicts" in caplog.text) == said


def test_contradictions_are_counted_not_listed(tmp_path, caplog):
    dataset(tmp_path, HEADER + "".join(f"sub-0{i}\t6{i}\tF\n" for i in range(1, 6)))
    for i in range(1, 6):
        sidecar(scan(tmp_path, f"sub-0{i}"), PatientAge="025Y")
    read_manifest(tmp_path, SCHEMA)
    assert caplog.text.count("contradicts") == 1
    assert "(and 4 more rows)" in caplog.text


@pytest.mark.parametrize(
    "cell",
    [
        "89+",
        ">89",
        ">=89",
        "≥ 89",
        "89 or older",
        "89 and over",
        "89+ years",
        "089Y+",
        "89_and_up",
        "gt89",
        "89 ans et plus",
        "89plus",
    ],
)
def test_a_top_coded_age_is_at_least_that_and_said(tmp_path, caplog, cell):
    (image,) = dataset(tmp_path, HEADER + f"sub-01\t{cell}\tF\n")
    assert both(tmp_path, image) == {"age": 89.0, "sex": "F"}
    assert f"'{cell}' is top-coded: at least 89 years, taken as 89" in caplog.text


def test_a_top_coded_age_is_read_in_a_manifest_and_in_levels(tmp_path, caplog):
    path = manifest(tmp_path, "subject,image,age", "1,a.nii.gz,90+")
    assert read_manifest(path, SCHEMA)[0].values == {"age": 90.0}
    (image,) = dataset(tmp_path, HEADER + "sub-01\t90\tF\n")
    describe(tmp_path, age={"Units": "years", "Levels": {"90": "90 or older"}})
    assert both(tmp_path, image) == {"age": 90.0, "sex": "F"}
    assert caplog.text.count("top-coded") == 3


@pytest.mark.parametrize("cell", ["40-45", "<18", "89-", "old"])
def test_other_bounds_are_no_ages(tmp_path, cell):
    (image,) = dataset(tmp_path, HEADER + f"sub-01\t{cell}\tF\n")
    assert both(tmp_path, image) == {"sex": "F"}
    assert "is not a number" in faults(
        manifest(tmp_path, "subject,image,age", f"1,a.nii.gz,{cell}")
    )


@pytest.mark.parametrize(
    ("column", "cell", "age"),
    [
        ("age (years)", "62", 62),
        ("Age [y]", "62", 62),
        ("AgeYears", "62", 62),
        ("age_yrs", "62", 62),
        ("Age at scan", "62", 62),
        ("age_at_scan", "62", 62),
        ("ageAtMRI", "62", 62),
        ("age_in_years_at_day_of_scan", "62", 62),
        ("PatientAge", "062Y", 62),
        ("Alter (Jahre)", "62", 62),
        ("edad", "62", 62),
        ("età", "62", 62),
        ("age_months", "744", 62),
        ("Age (month(s))", "744", 62),
        ("ageinmonths", "744", 62),
        ("age_at_scan_days", "22645.5", 62),
        ("age", "744 months", 62),
        ("age", "062Y", 62),
        ("age", "62 years old", 62),
        ("age", "61y 12m", 62),
    ],
)
def test_a_column_of_ages_is_known_by_many_names(tmp_path, column, cell, age):
    (image,) = dataset(tmp_path, f"participant_id\t{column}\nsub-01\t{cell}\n")
    assert both(tmp_path, image) == {"age": pytest.approx(age)}
    path = manifest(tmp_path, f'subject,image,"{column}"', f'1,a.nii.gz,"{cell}"')
    assert read_manifest(path, SCHEMA)[0].values == {"age": pytest.approx(age)}


@pytest.mark.parametrize(
    "column",
    [
        "age_at_onset",
        "age_group",
        "brain_age",
        "agerange",
        "interview_age",
        "age_m",
        "age_z",
        "age_years_months",
        "gestational age",
        "paternal_age",
        "sex_hormone",
        "gender identity",
    ],
)
def test_a_column_that_only_looks_like_age_or_sex_is_named(tmp_path, caplog, column):
    (image,) = dataset(tmp_path, f"participant_id\t{column}\nsub-01\t62\n")
    assert both(tmp_path, image) == {}
    path = manifest(tmp_path, f"subject,image,{column}", "1,a.nii.gz,62")
    assert read_manifest(path, SCHEMA)[0].values == {}
    assert caplog.text.count(f"column '{column}' looks like") == 3


@pytest.mark.parametrize("column", ["average", "stage", "language", "dosage", "contrast_agent"])
def test_columns_that_are_no_ages_are_not_spoken_of(tmp_path, caplog, column):
    read_manifest(manifest(tmp_path, f"subject,image,{column}", "1,a.nii.gz,62"), SCHEMA)
    assert caplog.text == ""


def test_the_plain_name_comes_first_and_is_not_warned_over(tmp_path, caplog):
    path = manifest(tmp_path, "subject,image,age_months,age,brain_age", "1,a.nii.gz,12,62,70")
    (row,) = read_manifest(path, SCHEMA)
    assert row.values == {"age": 62.0}
    assert row.extra == {"age_months": "12", "brain_age": "70"}
    assert caplog.text == ""


def test_another_column_that_cannot_be_read_is_a_warning_not_a_fault(tmp_path, caplog):
    path = manifest(tmp_path, "subject,image,gender,age at scan", "1,a.nii.gz,2,old")
    assert read_manifest(path, SCHEMA)[0].values == {}
    assert "gender: '2' is no known sex" in caplog.text
    assert "age at scan: 'old' is not a number" in caplog.text


def test_what_was_read_from_other_columns_reads_back_the_same(tmp_path):
    path = manifest(tmp_path, "subject,image,age_months,gender", "1,a.nii.gz,745,Mujer")
    rows = read_manifest(path, SCHEMA)
    write_manifest(tmp_path / "again.csv", rows)
    assert [r.values for r in read_manifest(tmp_path / "again.csv", SCHEMA)] == [rows[0].values]


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("1", "sub-01"),
        ("1", "sub-0001"),
        ("001", "sub-01"),
        ("1.0", "sub-01"),
        ("sub-1", "sub-01"),
        ("sub_01", "sub-01"),
        ("Sub-01", "sub-01"),
        ("sub-A1", "sub-a1"),
        ("a01", "sub-A1"),
        ("CC-01", "sub-CC01"),
    ],
)
def test_ids_find_their_folder_where_there_is_but_one(tmp_path, caplog, written, folder):
    (image,) = dataset(tmp_path, HEADER + f"{written}\t62\tF\n", subject=folder)
    scan(tmp_path, "sub-77")
    assert both(tmp_path, image) == {"age": 62.0, "sex": "F"}
    assert f"{written} is {folder}" in caplog.text


@pytest.mark.parametrize(
    ("ids", "folders"),
    [
        (("1",), ("sub-01", "sub-001")),
        (("1", "001"), ("sub-01",)),
        (("sub-A1",), ("sub-a1", "sub-a01")),
    ],
)
def test_ids_that_may_be_either_are_an_error_with_all_spellings(tmp_path, ids, folders):
    for folder in folders:
        (image,) = dataset(tmp_path, HEADER + "".join(f"{i}\t62\tF\n" for i in ids), subject=folder)
    said = faults(tmp_path)
    assert all(f"'{name}'" in said for name in (*ids, *folders))
    assert bids_values(image, SCHEMA) == ({}, "")


def test_the_exact_spelling_comes_first(tmp_path):
    for folder in ("sub-1", "sub-01"):
        dataset(tmp_path, HEADER + "1\t30\tF\n01\t60\tM\n", subject=folder)
    assert [
        (r.subject, r.image.name, r.values["age"]) for r in read_manifest(tmp_path, SCHEMA)
    ] == [
        ("1", "sub-1_T1w.nii.gz", 30.0),
        ("01", "sub-01_T1w.nii.gz", 60.0),
    ]


@pytest.mark.parametrize("written", ["1-1", "2", "11x", "subject"])
def test_other_ids_stay_others_and_both_spellings_are_named(tmp_path, written):
    (image,) = dataset(tmp_path, HEADER + f"{written}\t62\tF\n", subject="sub-11")
    assert bids_values(image, SCHEMA) == ({}, "")
    assert f"ids are like '{written}', folders like 'sub-11'" in faults(tmp_path)


@pytest.mark.parametrize(
    ("levels", "code", "sex"),
    [
        ({"M": "Mujer", "H": "Hombre"}, "M", "F"),
        ({"M": "Mujer", "H": "Hombre"}, "H", "M"),
        ({"M": "mujer", "H": "hombre"}, "m", "F"),
        ({"H": "Homme", "F": "Femme"}, "H", "M"),
        ({"W": "weiblich", "M": "männlich"}, "W", "F"),
        ({"W": "Frau", "M": "Mann"}, "M", "M"),
        ({"V": "vrouw", "M": "man"}, "V", "F"),
        ({"D": "donna", "U": "uomo"}, "U", "M"),
        ({"1": "Masculino", "2": "Femenino"}, "2", "F"),
        ({"1": "女性", "2": "男性"}, "1", "F"),
        ({"К": "женский"}, "К", "F"),
        ({"1": {"Description": {"es": "Varón"}, "TermURL": "http://x/female"}}, "1", "M"),
        ({"1": "male participant"}, "1.0", "M"),
        ({"male": 1, "female": 2}, "2", "F"),
        ({"F": "Female", "M": "Male"}, "F", "F"),
        ({"1": "M", "2": "F"}, "2", "F"),
        ({"1": "Male", "2": "Female"}, "M", "M"),
    ],
)
def test_the_tables_own_words_decide_what_a_level_means(tmp_path, levels, code, sex):
    (image,) = dataset(tmp_path, HEADER + f"sub-01\t62\t{code}\n")
    describe(tmp_path, sex={"levels" if code == "m" else "Levels": levels})
    assert both(tmp_path, image) == {"age": 62.0, "sex": sex}


@pytest.mark.parametrize("word", ["Maskuliini-X", "other", "male or female", "Moglie"])
def test_words_that_are_not_understood_are_refused_with_the_level(tmp_path, caplog, word):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t62\tM\n")
    describe(tmp_path, sex={"Levels": {"M": word}})
    assert both(tmp_path, image) == {"age": 62.0}
    assert f"the level 'M' is described as '{word}', which is not understood" in caplog.text


@pytest.mark.parametrize("word", ["Mujer", "weiblich", "FEMME", "donna", "vrouw", "Female"])
def test_whole_words_need_no_description(tmp_path, word):
    (image,) = dataset(tmp_path, HEADER + f"sub-01\t62\t{word}\n")
    assert both(tmp_path, image)["sex"] == "F"


def test_codes_that_the_description_or_the_column_explains(tmp_path):
    (image,) = dataset(tmp_path, HEADER + "sub-01\t62\t2\n")
    describe(tmp_path, sex={"Description": "1 = male, 2 = female"})
    assert both(tmp_path, image)["sex"] == "F"
    path = manifest(tmp_path, 'subject,image,"Sex (1=male, 2=female)"', "1,a.nii.gz,1")
    assert read_manifest(path, SCHEMA)[0].values == {"sex": "M"}


def test_m_beside_h_is_not_read_as_male(tmp_path):
    table = HEADER + "sub-01\t62\tM\nsub-02\t60\tH\n"
    (image,) = dataset(tmp_path, table)
    assert bids_values(image, SCHEMA)[0] == {"age": 62.0}


def test_home_and_variables_in_paths_are_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    lines = ["1,~/a.nii.gz", "2,$MY_DATA/a.nii.gz", "3,${MY_DATA}/a.nii.gz"]
    rows = read_manifest(manifest(tmp_path, "subject,image", *lines), SCHEMA)
    assert [row.image for row in rows] == [tmp_path / "a.nii.gz"] * 3


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    lines = ["1,$NO_SUCH_PLACE/a.nii.gz", "2,~nobody-here/a.nii.gz"]
    said = faults(manifest(tmp_path, "subject,image", *lines))
    assert "m.csv:2 column image: '$NO_SUCH_PLACE/a.nii.gz': the variable NO_SUCH_PLACE" in said
    assert "m.csv:3 column image: '~nobody-here/a.nii.gz': there is no user 'nobody-here'" in said


def test_a_name_with_a_dollar_or_a_tilde_is_that_file(tmp_path):
    for name in ("$a.nii.gz", "~a.nii.gz"):
        (tmp_path / name).touch()
    rows = read_manifest(manifest(tmp_path, "subject,image", "1,$a.nii.gz", "2,~a.nii.gz"), SCHEMA)
    assert [row.image.name for row in rows] == ["$a.nii.gz", "~a.nii.gz"]


def test_a_path_too_long_for_the_system_is_a_fault_like_another(tmp_path):
    assert "no such file" in faults(manifest(tmp_path, "subject,image", f"1,{'a' * 300}.nii.gz"))


def test_a_bids_folder_without_a_table_has_its_scans_as_rows(tmp_path):
    scan(tmp_path, "sub-02")
    scan(tmp_path, "sub-01", "ses-2")
    scan(tmp_path, "sub-01", "ses-10")
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\nses-2\t62\n")
    (tmp_path / "derivatives").mkdir()
    rows = read_manifest(tmp_path, SCHEMA)
    assert [(r.subject, r.session, r.image.name, r.values) for r in rows] == [
        ("sub-01", "ses-2", "sub-01_ses-2_T1w.nii.gz", {"age": 62.0}),
        ("sub-01", "ses-10", "sub-01_ses-10_T1w.nii.gz", {}),
        ("sub-02", "", "sub-02_T1w.nii.gz", {}),
    ]


def test_a_folder_without_scans_says_what_it_looked_for(tmp_path):
    (tmp_path / "sub-01").mkdir()
    assert "participants.tsv or sub-*/[ses-*/]anat/*_T1w.nii[.gz]" in faults(tmp_path)


def test_names_too_long_for_a_file_system_are_refused_before(tmp_path):
    check_outputs([tmp_path / ("a" * 234 + ".nii.gz")])
    for name in ("a" * 250, "ä" * 120):
        path = tmp_path / f"{name}_age+30.nii.gz"
        with pytest.raises(UsageError, match=rf"name of {len(path.name.encode())} bytes"):
            check_outputs([path])


def test_what_is_accepted_can_be_written(tmp_path):
    name = "a" * 235 + ".csv"
    check_outputs([tmp_path / name])
    (tmp_path / "x.nii").touch()
    write_manifest(tmp_path / name, [Row("1", tmp_path / "x.nii")])
    assert (tmp_path / name).is_file()


def test_a_subject_outside_the_training_range_is_said_once_with_its_target():
    age, sex = SCHEMA.variables
    schema = Schema((replace(age, support=(20.0, 79.0)), sex))
    subject = "the subject's age 95 is outside the training range 20 to 79 years: an extrapolation"
    factual = {"age": 95.0, "sex": "M"}
    for target in ({"age": 95.0, "sex": "F"}, {"age": 60.0, "sex": "M"}):
        assert schema.extrapolations(factual, target) == [Notice("extrapolation", subject)]
    assert len(schema.extrapolations(factual, {"age": 99.0, "sex": "M"})) == 2
    assert schema.extrapolations({"age": 60.0, "sex": "M"}, {"age": 60.0, "sex": "F"}) == []
