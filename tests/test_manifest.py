"""Manifests: every fault is named at once, and nothing is guessed."""

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest

from cfgen.data.bids import bids_values
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import REQUIRED, read_manifest, unique_key, write_manifest
from cfgen.data.table import COLUMNS, Row
from cfgen.errors import ManifestError

SCHEMA = default_schema()
EXAMPLES = Path(__file__).parents[1] / "data_manifests"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def manifest(folder: Path, text: str | bytes, name: str = "m.csv") -> Path:
    for image in ("a.nii.gz", "b.nii.gz", "c.mgz"):
        touch(folder / "t1" / image)
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def faults(path: Path) -> str:
    with pytest.raises(ManifestError) as error:
        read_manifest(path, SCHEMA)
    return str(error.value)


def bids(folder: Path, participants: str, *images: str) -> Path:
    path = folder / "participants.tsv"
    path.write_text(participants)
    for image in images:
        touch(folder / image)
    return path


def test_ids_stay_text_and_paths_are_beside_the_manifest(tmp_path, monkeypatch):
    path = manifest(tmp_path, "subject,image,age,sex,note\n007,t1/a.nii.gz,61.5,female,1e5\n")
    monkeypatch.chdir("/")
    (row,) = read_manifest(path, SCHEMA)
    assert row == Row(
        "007",
        tmp_path / "t1/a.nii.gz",
        values={"age": 61.5, "sex": "F"},
        extra={"note": "1e5"},
    )
    assert row.source == "m.csv:2"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "dos", "mac"])
def test_delimiters_marks_and_line_ends(tmp_path, delimiter, name, mark, end):
    lines = [["Subject", "image", "Age"], ["1", '"t1/a.nii.gz"', "30"], ["2", "t1/b.nii.gz", " 31"]]
    text = end.join(delimiter.join(line) for line in lines) + end + end
    rows = read_manifest(manifest(tmp_path, mark + text.encode(), name), SCHEMA)
    assert [(r.subject, r.values) for r in rows] == [("1", {"age": 30.0}), ("2", {"age": 31.0})]


@pytest.mark.parametrize("blank", ["", "n/a", "NA", "nan", "N/A", " NaN "])
def test_blank_cells_are_missing(tmp_path, blank):
    text = f"subject,session,image,mask,age,sex\n1,{blank},t1/a.nii.gz,{blank},{blank},F\n"
    (row,) = read_manifest(manifest(tmp_path, text), SCHEMA)
    assert (row.session, row.mask, row.values) == ("", None, {"sex": "F"})


def test_all_faults_come_together(tmp_path):
    said = faults(
        manifest(
            tmp_path,
            "subject,image,mask,age,sex\n"
            "1,t1/a.nii.gz,,7O,F\n"
            "2,t1/none.nii.gz,t1/mask.png,30,1\n"
            ",t1/b.nii.gz,,300,M\n"
            "4,,,30,M\n"
            "1,t1/b.nii.gz,,30,M\n",
        )
    )
    for part in (
        "m.csv:2 column age: '7O' is not a number; expected a number of years between 0 and 120",
        f"m.csv:3 column image: no such file '{tmp_path / 't1/none.nii.gz'}'",
        "m.csv:3 column mask: 't1/mask.png'; expected one of .nii.gz",
        "m.csv:3 column sex: '1' is no known sex; expected M or F",
        "m.csv:4 column subject: missing",
        "m.csv:4 column age: '300' is implausible",
        "m.csv:5 column image: missing",
        "m.csv:6 column subject: '1' is also m.csv:2",
        "8 faults",
    ):
        assert part in said


def test_files_that_are_not_there_may_wait_for_their_turn(tmp_path):
    text = "subject,image,mask\n1,t1/none.nii.gz,t1/nor.nii.gz\n2,t1/a.nii.gz,\n"
    path = manifest(tmp_path, text)
    first, second = read_manifest(path, SCHEMA, keep_missing=True)
    assert (first.image, first.mask) == (tmp_path / "t1/none.nii.gz", tmp_path / "t1/nor.nii.gz")
    assert second.image.exists()
    assert "2 faults" in faults(path)
    # What can't be an image is a fault of the table all the same.
    with pytest.raises(ManifestError, match=r"'t1/none\.png'; expected one of"):
        read_manifest(
            manifest(tmp_path, "subject,image\n1,t1/none.png\n"), SCHEMA, keep_missing=True
        )


def test_twenty_faults_are_shown_and_the_rest_counted(tmp_path):
    lines = "".join(f"{i},t1/a.nii.gz,old\n" for i in range(57))
    said = faults(manifest(tmp_path, "subject,image,age\n" + lines))
    assert said.count("not a number") == 20
    assert "57 faults" in said
    assert "and 37 more" in said


def test_line_numbers_count_blank_and_broken_lines(tmp_path):
    text = 'subject,image,note,age\n\n1,t1/a.nii.gz,"two\nlines",30\n\n2,t1/b.nii.gz,x,old\n'
    assert "m.csv:6 column age" in faults(manifest(tmp_path, text))


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("participant_id,image", "rename 'participant_id' to 'subject'"),
        ("Subjects,image", "rename 'Subjects' to 'subject'"),
        ("subject,T1w", "rename 'T1w' to 'image'"),
        ("subject,images", "rename 'images' to 'image'"),
        ("foo,bar", "found foo, bar"),
    ],
)
def test_missing_columns_suggest_the_nearest(tmp_path, header, hint):
    assert hint in faults(manifest(tmp_path, f"{header}\n1,t1/a.nii.gz\n"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\n\n,,\n", "is empty"),
        (b"subject,image\n", "no rows"),
        (b"subject,image,image\n1,a,b\n", "image twice"),
        (b"subject,image,Image\n1,a,b\n", "image twice"),
        (b"subject,image,note\n1,t1/a.nii.gz,M\xfcller\n", ":2: byte 0xfc"),
        ("subject,image\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (b"subject,image\n1\0,x\n", "no text file"),
        (b"subject,image\n1,t1/a.nii.gz,extra\n", ":2 has 3 cells"),
        (b"subject,image\n1\n", ":2 has 1 cells"),
        (b'subject,image\n1,"t1/a.nii.gz\n', "no table"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, raw, message):
    assert message in faults(manifest(tmp_path, raw))


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read" in faults(tmp_path / "none.csv")
    assert "a folder without scans in the BIDS layout" in faults(tmp_path)


def test_empty_columns_of_a_spreadsheet_are_ignored(tmp_path):
    text = ",subject,image,,\n0,1,t1/a.nii.gz,,\n"
    (row,) = read_manifest(manifest(tmp_path, text), SCHEMA)
    assert row.extra == {}


def test_rows_that_would_share_a_file_name_are_named(tmp_path):
    text = "subject,image\na/b,t1/a.nii.gz\nA b,t1/b.nii.gz\n//,t1/b.nii.gz\n"
    said = faults(manifest(tmp_path, text))
    assert "m.csv:3 column subject: 'A b' would have the same file names as m.csv:2" in said
    assert "'//' has no letter or digit" in said


@pytest.mark.parametrize(
    ("subject", "session", "key"),
    [
        ("007", "", "007"),
        ("sub-01", "ses-2", "sub-01_ses-2"),
        ("../etc/passwd", "", "etc-passwd"),
        ("a b\n", "é", "a-b_é"),
        ("被験者01", "", "被験者01"),
        ("Müller", "", "Müller"),
        ("Mu\N{COMBINING DIAERESIS}ller", "", "Müller"),
        ("नमस्ते", "यात्रा 1", "नमस्ते_यात्रा-1"),
        ("Иван／\u200b\udcff", "", "Иван"),
        (".hidden", "", "hidden"),
    ],
)
def test_keys_are_safe_file_names(subject, session, key):
    assert unique_key(Row(subject, Path("x.nii"), session)) == key


@pytest.mark.parametrize("name", ["out.csv", "deep/er/out.tsv"])
def test_written_manifests_read_back_the_same(tmp_path, name):
    text = (
        "subject,session,image,mask,posteriors,age,sex,split,comment\n"
        '007,1,t1/a.nii.gz,t1/b.nii.gz,,61.123456789012345,F,train,"a, ""b""\tc"\n'
        "007,2,t1/b.nii.gz,,t1/c.mgz,,M,val,\n"
        "é 8,,t1/c.mgz,,,0.1,,,x;y\n"
    )
    rows = read_manifest(manifest(tmp_path, text), SCHEMA)
    write_manifest(tmp_path / name, rows)
    back = read_manifest(tmp_path / name, SCHEMA)

    def resolved(row: Row) -> Row:
        paths = {p: getattr(row, p) for p in ("image", "mask", "labels", "posteriors")}
        paths = {p: v and v.resolve() for p, v in paths.items()}
        return Row(**{**vars(row), **paths})

    assert [resolved(r) for r in back] == [resolved(r) for r in rows]


def test_written_columns_are_ordered_and_none_is_empty(tmp_path):
    image = touch(tmp_path / "scans/a.nii.gz")
    row = Row("1", image, values={"sex": "F", "age": 62.0}, split="val", extra={"error": "no"})
    write_manifest(tmp_path / "m.csv", [row])
    text = (tmp_path / "m.csv").read_text()
    assert text == "subject,image,age,sex,split,error\n1,scans/a.nii.gz,62,F,val,no\n"


def test_written_paths_move_with_the_folder(tmp_path):
    image = touch(tmp_path / "old/scans/a.nii.gz")
    write_manifest(tmp_path / "old/tables/m.csv", [Row("1", image)])
    shutil.move(tmp_path / "old", tmp_path / "new")
    (row,) = read_manifest(tmp_path / "new/tables/m.csv", SCHEMA)
    assert row.image.resolve() == (tmp_path / "new/scans/a.nii.gz").resolve()


def test_written_paths_climb_real_folders(tmp_path):
    image = touch(tmp_path / "data/a.nii.gz")
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    write_manifest(tmp_path / "link/m.csv", [Row("1", image)])
    (row,) = read_manifest(tmp_path / "link/m.csv", SCHEMA)
    assert row.image.samefile(image)


def test_bids_sessions_runs_and_session_ages(tmp_path, caplog):
    path = bids(
        tmp_path,
        "participant_id\tage\tgender\tgroup\nsub-01\t60\tfemale\tpatient\n02\t40\tM\tcontrol\n"
        "sub-03\t50\tM\tcontrol\n",
        "sub-01/ses-10/anat/sub-01_ses-10_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_run-10_T1w.nii",
        "sub-02/anat/sub-02_run-2_T1w.nii",
        "sub-02/anat/sub-02_run-2_T1w.json",
        "sub-02/anat/sub-02_T2w.nii",
    )
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tage\nses-2\t60.5\nses-10\t65\n"
    )
    with caplog.at_level(logging.WARNING):
        rows = read_manifest(path, SCHEMA)
    assert [(r.subject, r.session, r.image.name, r.values) for r in rows] == [
        ("sub-01", "ses-2", "sub-01_ses-2_T1w.nii.gz", {"age": 60.5, "sex": "F"}),
        ("sub-01", "ses-10", "sub-01_ses-10_T1w.nii.gz", {"age": 65.0, "sex": "F"}),
        ("02", "", "sub-02_run-2_T1w.nii", {"age": 40.0, "sex": "M"}),
    ]
    assert rows[0].extra == {"group": "patient"}
    assert "sub-02_run-2_T1w.nii taken, not sub-02_run-10_T1w.nii" in caplog.text
    assert "1 without a T1w left out: sub-03" in caplog.text
    assert read_manifest(tmp_path, SCHEMA) == rows


@pytest.mark.parametrize(
    ("cells", "description", "values"),
    [
        ("89-\tF", {}, {"sex": "F"}),
        ("40-45\tO", {}, {}),
        ("34\t1", {}, {"age": 34.0}),
        ("34\t1", {"sex": {"Levels": {"1": "Male", "2": "Female"}}}, {"age": 34.0, "sex": "M"}),
        ("34\t2", {"sex": {"Levels": {"2": {"Description": "female"}}}}, {"age": 34.0, "sex": "F"}),
        ("34\tM", {"sex": {"Levels": {"M": "male participant"}}}, {"age": 34.0, "sex": "M"}),
        ("34\tF", {"age": {"Units": "months"}}, {"age": 34 / 12, "sex": "F"}),
        ("34\tF", {"age": {"Units": "decades"}}, {"sex": "F"}),
        ("34\tF", {"age": {"Units": "year"}}, {"age": 34.0, "sex": "F"}),
        ("n/a\tn/a", {}, {}),
    ],
)
def test_bids_values_are_known_or_unknown_with_a_reason(tmp_path, cells, description, values):
    path = bids(
        tmp_path, f"participant_id\tage\tsex\nsub-1\t{cells}\n", "sub-1/anat/sub-1_T1w.nii.gz"
    )
    (tmp_path / "participants.json").write_text(json.dumps(description))
    (row,) = read_manifest(path, SCHEMA)
    assert row.values == values
    given = sum(cell != "n/a" for cell in cells.split("\t"))
    assert len(row.notes) == given - len(values)
    assert bids_values(row.image, SCHEMA) == (values, "participants.tsv" if values else "")


def test_bids_without_any_scan_says_where_it_looked(tmp_path):
    assert "anat/*_T1w.nii" in faults(bids(tmp_path, "participant_id\tage\nsub-1\t3\n"))


def test_a_participant_twice_is_a_fault(tmp_path):
    path = bids(
        tmp_path,
        "participant_id\tage\nsub-1\t30\nsub-1\t31\n",
        "sub-1/anat/sub-1_T1w.nii.gz",
    )
    assert "'sub-1' is also participants.tsv:2" in faults(path)
    assert bids_values(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz", SCHEMA) == ({}, "")


@pytest.mark.parametrize(
    ("sidecar", "values"),
    [
        ({"PatientAge": "026Y", "PatientSex": "F"}, {"age": 26.0, "sex": "F"}),
        ({"PatientAge": "018M"}, {"age": 1.5}),
        ({"PatientAge": 26, "Sex": "male"}, {"age": 26.0, "sex": "M"}),
        ({"age": 26.5, "sex": "m"}, {"age": 26.5, "sex": "M"}),
        ({"Age": "26", "PatientSex": "O"}, {"age": 26.0}),
        ({"PatientAge": "", "PatientSex": None}, {}),
        ({"PatientAge": "89+", "PatientSex": 1}, {"age": 89.0}),
        ({"Age": [26]}, {}),
        ([1, 2], {}),
    ],
)
def test_sidecar_values(tmp_path, sidecar, values):
    image = touch(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.json").write_text(json.dumps(sidecar))
    assert bids_values(image, SCHEMA) == (values, "scan.json" if values else "")


def test_a_damaged_sidecar_is_said_and_passed_over(tmp_path, caplog):
    image = touch(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.json").write_text("{")
    assert bids_values(image, SCHEMA) == ({}, "")
    assert "scan.json: not used" in caplog.text


def test_the_first_source_wins_and_contradictions_are_said(tmp_path, caplog):
    bids(tmp_path, "participant_id\tage\tsex\n1\t60\tM\n")
    image = touch(tmp_path / "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz")
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-2\t62\n")
    assert bids_values(image, SCHEMA) == (
        {"age": 62.0, "sex": "M"},
        "sub-1_sessions.tsv, participants.tsv",
    )
    sidecar = image.with_name("sub-1_ses-2_T1w.json")
    sidecar.write_text('{"PatientAge": "063Y", "PatientSex": "F"}')
    assert bids_values(image, SCHEMA)[0] == {"age": 62.0, "sex": "M"}
    said = "sub-1_ses-2_T1w.json: sex F contradicts M of sub-1_sessions.tsv, participants.tsv"
    assert said in caplog.text


def test_no_subject_and_far_tables_give_nothing(tmp_path):
    bids(tmp_path, "participant_id\tage\nsub-1\t60\n")
    assert bids_values(touch(tmp_path / "T1w.nii.gz"), SCHEMA) == ({}, "")
    assert bids_values(touch(tmp_path / "sub-10_T1w.nii.gz"), SCHEMA) == ({}, "")
    assert bids_values(touch(tmp_path / "a/b/c/sub-1_T1w.nii.gz"), SCHEMA)[0] == {"age": 60.0}
    assert bids_values(touch(tmp_path / "a/b/c/d/sub-1_T1w.nii.gz"), SCHEMA) == ({}, "")


def test_the_example_reads_once_its_images_are_there(tmp_path):
    shutil.copy(EXAMPLES / "example.csv", tmp_path)
    with (tmp_path / "example.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            for column in ("image", "mask", "labels"):
                if line[column]:
                    touch(tmp_path / line[column])
    rows = read_manifest(tmp_path / "example.csv", SCHEMA)
    assert [unique_key(r) for r in rows] == ["007_baseline", "007_followup", "012_baseline"]
    assert all(SCHEMA.missing(r.values) == [] for r in rows)


def test_the_bids_example_reads_once_its_images_are_there(tmp_path):
    text = (EXAMPLES / "example_bids_participants.tsv").read_text()
    images = [f"sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 2, 3)]
    rows = read_manifest(bids(tmp_path, text, *images), SCHEMA)
    assert [r.values.get("age") for r in rows] == [34.0, 58.5, None]


def test_the_json_schema_has_the_columns_of_the_reader():
    schema = json.loads((EXAMPLES / "schema.json").read_text())
    assert set(schema["required"]) == set(REQUIRED)
    assert set(schema["properties"]) == {*COLUMNS, *SCHEMA.names}


def test_ixi_table_has_the_split_of_the_shipped_model():
    with (EXAMPLES / "ixi_2mm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    splits = [r["split"] for r in rows]
    assert (splits.count("train"), splits.count("val"), len(splits)) == (120, 31, 151)
    assert len({r["subject"] for r in rows}) == 151
    for r in rows:
        SCHEMA.check_value("age", r["age"], r["subject"])
        SCHEMA.check_value("sex", r["sex"], r["subject"])
