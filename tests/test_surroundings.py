"""What surrounds a run: folders, names, encodings, memory, signals, other runs beside it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfgen.batch.lists import write_lists
from cfgen.batch.rows import Made, run_rows
from cfgen.cli import show
from cfgen.data.table import Row
from cfgen.edit import engine as engine_room
from cfgen.errors import ImageError
from cfgen.jobs import counterfactual as counterfactual_job

pytestmark = pytest.mark.usefixtures("prepared_once")


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own."""
    code = "from cfgen.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("name", ["file/edits", "file"])
def test_an_output_folder_that_cannot_be_is_one_error(
    cfgen, tiny_bundle, stripped_scan, tmp_path, name
):
    (tmp_path / "file").write_text("mine")
    code, _, err = cfgen(
        *("counterfactual", "--in", stripped_scan, "--age", "+5", "--from", "age=40,sex=M"),
        *("--bundle", tiny_bundle.path, "--out", tmp_path / name),
    )
    assert code in (2, 3)
    assert "is a file" in err
    assert "Traceback" not in err
    assert "aligned" not in err
    assert (tmp_path / "file").read_text() == "mine"


def test_long_names_are_refused_before_anything_is_computed(
    cfgen, tiny_bundle, stripped_scan, tmp_path
):
    name = "s" * 240
    (tmp_path / "cohort.csv").write_text(f"subject,image,age,sex\n{name},{stripped_scan},40,M\n")
    code, _, err = cfgen(
        *("counterfactual", "--manifest", tmp_path / "cohort.csv", "--age", "+5"),
        *("--bundle", tiny_bundle.path, "--out", tmp_path / "out"),
    )
    assert code == 2
    assert "bytes" in err
    assert not (tmp_path / "out").exists()


def test_paths_that_the_terminal_cannot_spell_are_printed_all_the_same(tmp_path):
    folder = tmp_path / "Müller 脳"
    folder.mkdir()
    for encoding in ("ascii", "latin-1"):
        done = command("info", folder, PYTHONIOENCODING=encoding)
        assert done.returncode == 4
        assert b"M" in done.stderr
        assert b"has no bundle.json" in done.stderr
        assert b"Traceback" not in done.stderr


def test_results_with_such_paths_are_printed_with_exit_0(tiny_bundle, stripped_scan, tmp_path):
    scan = tmp_path / "Jürgen 脳.nii.gz"
    shutil.copy(stripped_scan, scan)
    done = command(
        *("counterfactual", "--in", scan, "--from", "age=40,sex=M", "--age", "+5", "--dry-run"),
        *("--bundle", tiny_bundle.path, "--out", tmp_path),
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"_age+5.nii.gz\n")


def test_little_memory_is_said_and_no_traceback(tiny_bundle, stripped_scan, tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000,) * 2)\n"
        "from cfgen.cli import main; main()"
    )
    arguments = ["counterfactual", "--in", stripped_scan, "--age", "+5", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 5, done.stderr
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert show.cpu_count() == os.cpu_count()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_one_scan_ends_with_75_and_leaves_nothing(
    cfgen, tiny_bundle, stripped_scan, tmp_path, monkeypatch, number
):
    def killed(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(counterfactual_job, "write_record", killed)
    code, out, err = cfgen(
        *("counterfactual", "--in", stripped_scan, "--from", "age=40,sex=M", "--age", "+5"),
        *("--bundle", tiny_bundle.path, "--out", tmp_path / "edits"),
    )
    assert (code, out) == (75, "")
    assert f"stopped by {signal.Signals(number).name}" in err
    assert list((tmp_path / "edits").iterdir()) == []


def cohort(tmp_path: Path, scan: Path, *subjects: str) -> Path:
    path = tmp_path / f"{'-'.join(subjects)}.csv"
    rows = "".join(f"{s},{scan},{40 + n},M\n" for n, s in enumerate(subjects))
    path.write_text(f"subject,image,age,sex\n{rows}")
    return path


def batch(cfgen, bundle, manifest, out, *more):
    arguments = ("counterfactual", "--manifest", manifest, "--bundle", bundle.path, "--out", out)
    return cfgen(*arguments, "--no-picture", *more)


def test_a_run_killed_in_the_middle_of_overwriting_is_not_kept_as_done(
    cfgen, tiny_bundle, stripped_scan, tmp_path, monkeypatch
):
    manifest, out = cohort(tmp_path, stripped_scan, "a"), tmp_path / "out"
    code, _, err = batch(cfgen, tiny_bundle, manifest, out, "--age", "+5")
    assert code == 0, err
    image, record = out / "a_age+5.nii.gz", out / "a_age+5.json"
    right = image.read_bytes()
    # kill -9 after the image of another request was written, before its record.
    with monkeypatch.context() as patch:

        class Killed(BaseException):
            pass

        def killed(*_: object) -> None:
            raise Killed

        patch.setattr(counterfactual_job, "write_record", killed)
        patch.setattr(Path, "unlink", unlink_records_alone(Path.unlink))
        with pytest.raises(Killed):
            batch(cfgen, tiny_bundle, manifest, out, "--age", "+5", "--steps", "3", "--overwrite")
    assert image.read_bytes() != right
    assert not record.exists()
    code, _, err = batch(cfgen, tiny_bundle, manifest, out, "--age", "+5")
    assert code == 0, err
    assert "is there already" not in err
    assert image.read_bytes() == right


def unlink_records_alone(real):
    """A killed process tidies nothing up: only what it does before it writes goes."""

    def unlink(self, missing_ok=False):
        if self.suffix == ".json":
            real(self, missing_ok=missing_ok)

    return unlink


def listed(out: Path, name: str = "manifest.csv") -> list[str]:
    return sorted(Path(row["image"]).name for row in csv.DictReader((out / name).open()))


def test_lists_of_a_folder_are_unions(cfgen, tiny_bundle, stripped_scan, tmp_path):
    out = tmp_path / "out"
    first, second = (cohort(tmp_path, stripped_scan, s) for s in ("a", "b"))
    for manifest, age in ((first, "+5"), (second, "+5"), (first, "+9")):
        code, _, err = batch(cfgen, tiny_bundle, manifest, out, "--age", age)
        assert code == 0, err
    assert listed(out) == ["a_age+5.nii.gz", "a_age+9.nii.gz", "b_age+5.nii.gz"]
    # What is no more there is no longer listed.
    for path in out.glob("b_*"):
        path.unlink()
    batch(cfgen, tiny_bundle, first, out, "--age", "+9")
    assert listed(out) == ["a_age+5.nii.gz", "a_age+9.nii.gz"]


def test_a_row_that_works_at_last_leaves_the_list_of_failures(tmp_path):
    image = tmp_path / "a.nii"
    image.write_text("")
    rows = [Row(s, image, extra={"error": "broken"}) for s in ("a", "b")]
    write_lists(tmp_path, [], rows, rows)
    assert len(listed(tmp_path, "failed.csv")) == 2
    write_lists(tmp_path, [Row("a", image)], [], [Row("a", image)])
    (left,) = csv.DictReader((tmp_path / "failed.csv").open())
    assert left["subject"] == "b"
    write_lists(tmp_path, [], [], [Row("b", image)])
    assert not (tmp_path / "failed.csv").exists()


def test_two_writers_of_one_list_do_not_lose_rows(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom cfgen.batch.lists import write_lists\n"
        "from cfgen.data.table import Row\n"
        "for n in range(15):\n"
        "    row = Row(f'{sys.argv[1]}{n}', Path(sys.argv[2]) / 'a.nii')\n"
        "    write_lists(Path(sys.argv[2]), [row], [], [row])\n"
    )
    (tmp_path / "a.nii").write_text("")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name, str(tmp_path)]) for name in "xyz"
    ]
    assert [w.wait() for w in writers] == [0, 0, 0]
    assert len(listed(tmp_path)) == 45


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImageError("a.nii", "is broken"), "a.nii: is broken"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division by zero"), "unforeseen ZeroDivisionError: division by zero"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
)
def test_whatever_happens_in_a_row_is_that_rows_failure(error, said):
    rows = [Row(s, Path("x.nii"), source=f"c.csv:{n}") for n, s in enumerate("abc")]

    def work(row: Row) -> str:
        if row.subject == "b":
            raise error
        return row.subject

    outcome = run_rows(rows, lambda row: row, work, lambda row, s: Made(s, "done"))
    assert outcome.done == ["a", "c"]
    (failed,) = outcome.failed
    assert said in failed.extra["error"]
    with pytest.raises(type(error)):
        run_rows(rows, lambda r: r, work, lambda r, s: Made(s, "done"), keep_going=False)


def test_a_subject_outside_the_training_range_is_said(cfgen, tiny_bundle, stripped_scan, tmp_path):
    code, _, err = cfgen(
        *("counterfactual", "--in", stripped_scan, "--from", "age=8,sex=M", "--age", "40"),
        *("--bundle", tiny_bundle.path, "--out", tmp_path, "--no-picture"),
    )
    assert code == 0, err
    assert "the subject's age 8 is outside the training range 20 to 86 years" in err
    (record,) = tmp_path.glob("*.json")
    assert [n["Code"] for n in json.loads(record.read_text())["Warnings"]] == ["extrapolation"]


@pytest.mark.parametrize(
    ("rows", "age", "said"),
    [
        ("a,{scan},62,M\n", "+166", "would become 228"),
        ("a,{folder}/cut.nii.gz,62,M\n", "+5", "cut.nii.gz"),
    ],
)
def test_a_dry_run_says_what_would_fail(
    cfgen, tiny_bundle, stripped_scan, tmp_path, rows, age, said
):
    (tmp_path / "cut.nii.gz").write_bytes(stripped_scan.read_bytes()[:100])
    text = rows.format(scan=stripped_scan, folder=tmp_path)
    (tmp_path / "c.csv").write_text(f"subject,image,age,sex\n{text}b,{stripped_scan},40,F\n")
    out = tmp_path / "out"
    code, _, err = batch(cfgen, tiny_bundle, tmp_path / "c.csv", out, "--age", age, "--dry-run")
    assert code == 1
    assert "c.csv:2" in err
    assert said in err
    assert not out.exists()


def test_the_sidecar_names_the_table_and_no_path(cfgen, tiny_bundle, stripped_scan, tmp_path):
    manifest, out = cohort(tmp_path, stripped_scan, "a"), tmp_path / "out"
    code, _, err = batch(cfgen, tiny_bundle, manifest, out, "--age", "+5")
    assert code == 0, err
    text = (out / "a_age+5.json").read_text()
    assert str(tmp_path) not in text
    said = json.loads(text)
    assert said["Factual"]["age"]["Source"] == "a.csv:2"
    device = engine_room.pick_device("cpu")
    assert said["NumberType"] == counterfactual_job.number_type(device)
    assert said["NumberType"] in ("bf16", "fp32")
