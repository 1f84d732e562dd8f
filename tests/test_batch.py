"""The loop over rows and the two lists of a folder, without any scan."""

from __future__ import annotations

import csv
import logging
import os
import signal
from pathlib import Path

import pytest

from cfgen.batch.lists import write_lists
from cfgen.batch.rows import Made, run_rows
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.errors import ImageError


def made(folder: Path, *names: str, **extra: str) -> list[Row]:
    """Rows 'subject/session' whose image, 'subject-session.nii', is in the folder."""
    rows = []
    for name in names:
        subject, _, session = name.partition("/")
        image = folder / f"{subject}-{session}.nii"
        image.touch()
        rows.append(Row(subject, image, session=session, extra=extra))
    return rows


def listed(folder: Path, name: str = "manifest.csv") -> list[tuple[str, str, str]]:
    with (folder / name).open(newline="") as file:
        return [
            (r["subject"], r.get("session", ""), r.get("note", r.get("error", "")))
            for r in csv.DictReader(file)
        ]


def test_a_row_done_again_is_listed_once_and_its_other_session_stays(tmp_path):
    first = made(tmp_path, "a/1", "a/2", "b/", note="old")
    assert write_lists(tmp_path, first, [], first) == [tmp_path / "manifest.csv"]
    again = made(tmp_path, "a/2", "c/", note="new")
    write_lists(tmp_path, again, [], again)
    assert listed(tmp_path) == [
        *(("a", "1", "old"), ("b", "", "old")),
        *(("a", "2", "new"), ("c", "", "new")),
    ]


def test_a_row_that_failed_this_time_keeps_the_image_it_had(tmp_path):
    rows = made(tmp_path, "a/", "b/", note="old")
    write_lists(tmp_path, rows, [], rows)
    failed = made(tmp_path, "a/", error="broken")
    written = write_lists(tmp_path, [], failed, failed)
    assert written == [tmp_path / "manifest.csv", tmp_path / "failed.csv"]
    assert [s for s, *_ in listed(tmp_path)] == ["a", "b"]
    assert listed(tmp_path, "failed.csv") == [("a", "", "broken")]


def test_what_was_not_tried_stays_among_the_failures(tmp_path):
    failed = made(tmp_path, "a/1", "a/2", "b/", error="broken")
    write_lists(tmp_path, [], failed, failed)
    tried = made(tmp_path, "a/2", "b/")
    write_lists(tmp_path, tried, [], tried)
    assert listed(tmp_path, "failed.csv") == [("a", "1", "broken")]
    assert [s[:2] for s in listed(tmp_path)] == [("a", "2"), ("b", "")]


def test_images_that_are_gone_leave_the_list_and_an_empty_list_goes(tmp_path):
    rows = made(tmp_path, "a/", "b/")
    write_lists(tmp_path, rows, [], rows)
    rows[0].image.unlink()
    write_lists(tmp_path, [], [], [])
    assert [s for s, *_ in listed(tmp_path)] == ["b"]
    rows[1].image.unlink()
    assert write_lists(tmp_path, [], [], []) == []
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_cannot_be_read_is_replaced(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"PK\x03\x04")
    rows = made(tmp_path, "a/")
    write_lists(tmp_path, rows, [], rows)
    assert [s for s, *_ in listed(tmp_path)] == ["a"]


def row_of(item: str) -> Row:
    return Row(item, Path(f"{item}.nii"), source=f"c.csv:{item}")


def test_every_item_is_finished_with_what_was_found_of_it(caplog):
    def finish(item: str, found: str) -> Made[str]:
        if item == "c":
            raise ImageError("c.nii", "is broken")
        return Made(f"{item}{found}", "prepared")

    with caplog.at_level(logging.INFO, "cfgen"):
        outcome = run_rows("abcd", row_of, str.upper, finish)
    assert outcome.done == ["aA", "bB", "dD"]
    assert [(r.subject, r.extra) for r in outcome.failed] == [("c", {"error": "c.nii: is broken"})]
    assert outcome.left == []
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        *("1/4 a prepared", "2/4 b prepared", "c.csv:c: c.nii: is broken", "4/4 d prepared"),
    ]


def test_a_signal_stops_between_two_items_and_the_rest_is_left():
    def finish(item: str, found: str) -> Made[str]:
        if item == "b":
            os.kill(os.getpid(), signal.SIGTERM)
        return Made(item, "done")

    before = signal.getsignal(signal.SIGTERM)
    outcome = run_rows("abcd", row_of, str, finish)
    assert (outcome.done, outcome.failed) == (["a", "b"], [])
    assert [r.subject for r in outcome.left] == ["c", "d"]
    assert signal.getsignal(signal.SIGTERM) is before


EDIT = ("--age", "+5")
SHRINK = ("--set", "hippocampus=-10%")


@pytest.mark.parametrize(
    ("command", "options", "lists"),
    [
        ("counterfactual", EDIT, True),
        ("counterfactual", (*EDIT, "--dry-run"), False),
        ("segment", (), True),
        ("preprocess", (), True),
        ("preprocess", ("--check",), False),
        ("edit-masks", SHRINK, True),
        ("edit-masks", (*SHRINK, "--dry-run"), False),
        ("report", ("--no-regions",), True),
    ],
)
def test_a_row_without_its_file_fails_and_the_batch_goes_on(
    cfgen, segmenter_bundle, tmp_path, command, options, lists
):
    (tmp_path / "empty.nii.gz").touch()
    manifest, out = tmp_path / "cohort.csv", tmp_path / "out"
    manifest.write_text(
        "subject,image,labels,age,sex\n"
        "gone,none.nii.gz,none.nii.gz,40,M\n"
        "empty,empty.nii.gz,empty.nii.gz,50,F\n"
    )
    bundle = () if command == "edit-masks" else ("--bundle", segmenter_bundle.path)
    code, printed, err = cfgen(command, "--manifest", manifest, "--out", out, *bundle, *options)
    assert code == 1
    said = printed + err
    assert "no such file" in said
    # The next row had its turn.
    assert "empty.nii.gz: " in said or "empty.json" in said
    assert (out / "failed.csv").exists() == lists
    if lists:
        again = read_manifest(out / "failed.csv", default_schema(), keep_missing=True)
        assert [row.subject for row in again] == ["gone", "empty"]


def test_what_failed_for_want_of_its_file_stays_listed(tmp_path):
    gone = [Row("a", tmp_path / "none.nii", extra={"error": "no such file"})]
    write_lists(tmp_path, [], gone, gone)
    other = made(tmp_path, "b/")
    write_lists(tmp_path, other, [], other)
    assert listed(tmp_path, "failed.csv") == [("a", "", "no such file")]


def test_what_is_true_of_every_target_is_said_once(cfgen, tiny_bundle, stripped_scan, tmp_path):
    ask = ["counterfactual", "--in", stripped_scan, "--from", "age=88,sex=F", "--out", tmp_path]
    ask += ["--bundle", tiny_bundle.path, "--age", "+1", "--age", "+2", "--age", "80", "--dry-run"]
    code, _, err = cfgen(*ask)
    assert code == 0
    of_the_scan = f"{stripped_scan.name}: warning: the subject's age 88 is outside"
    assert [err.count(text) for text in (of_the_scan, "the subject's age 88")] == [1, 1]
    assert "age+1.nii.gz: warning: age 89 is outside" in err
    assert "age+2.nii.gz: warning: age 90 is outside" in err
