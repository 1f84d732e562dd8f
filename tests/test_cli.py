"""The command line: exit codes, streams, manifests; nothing is written where a run is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal

import nibabel as nib
import numpy as np
import pytest

from cfgen.jobs import counterfactuals as batch

pytestmark = pytest.mark.usefixtures("prepared_once")


def test_one_scan(cfgen, tiny_bundle, stripped_scan, tmp_path):
    code, out, err = cfgen(
        "counterfactual",
        "--in",
        stripped_scan,
        "--from",
        "age=40,sex=M",
        "--age",
        "+20",
        "--bundle",
        tiny_bundle.path,
        "--out",
        tmp_path / "edits",
    )
    made = tmp_path / "edits" / "mni_T1w_age+20.nii.gz"
    assert (code, out.strip()) == (0, str(made)), err
    names = sorted(p.name for p in made.parent.iterdir())
    assert names == [f"mni_T1w_age+20.{s}" for s in ("json", "nii.gz", "png")]


def test_manifest_goes_on_after_a_bad_row(cfgen, tiny_bundle, stripped_scan, tmp_path):
    image = nib.load(stripped_scan)
    empty = nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine)
    nib.save(empty, tmp_path / "bad.nii.gz")
    (tmp_path / "cohort.csv").write_text(
        f"subject,image,age,sex\n007,{stripped_scan},40,M\n008,bad.nii.gz,50,F\n"
    )
    out = tmp_path / "edits"
    code, printed, err = cfgen(
        "counterfactual",
        "--manifest",
        tmp_path / "cohort.csv",
        "--sex",
        "F",
        "--bundle",
        tiny_bundle.path,
        "--out",
        out,
        "--no-picture",
        "--json",
    )
    assert code == 1
    assert json.loads(printed)["outputs"] == [str(out / "007_sexF.nii.gz")]
    assert "cohort.csv:3" in err
    assert "every voxel is zero" in err
    (done,) = csv.DictReader((out / "manifest.csv").open())
    assert (done["subject"], done["sex"], done["age"]) == ("007", "F", "40")
    (failed,) = csv.DictReader((out / "failed.csv").open())
    assert failed["subject"] == "008"
    assert "zero" in failed["error"]


def test_a_batch_goes_on_where_it_was_stopped(
    cfgen, tiny_bundle, stripped_scan, tmp_path, monkeypatch
):
    rows = "".join(f"{n},{stripped_scan},{a},M\n" for n, a in (("a", 40), ("b", 50), ("c", 60)))
    (tmp_path / "cohort.csv").write_text(f"subject,image,age,sex\n{rows}")
    out = tmp_path / "edits"
    command = ["counterfactual", "--manifest", tmp_path / "cohort.csv", "--age", "+5"]
    command += ["--bundle", tiny_bundle.path, "--out", out, "--no-picture"]

    def subjects() -> list[str]:
        return [row["subject"] for row in csv.DictReader((out / "manifest.csv").open())]

    # SIGTERM while the second scan is read: that scan is finished, the third is not begun.
    read, seen = batch.counterfactual, []

    def stopping(engine, scan, outputs, **options):
        seen.append(scan)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(engine, scan, outputs, **options)

    monkeypatch.setattr(batch, "counterfactual", stopping)
    code, _, err = cfgen(*command)
    assert code == 75
    assert "stopped with 1 scan left; the same command goes on from there" in err
    assert subjects() == ["a", "b"]
    # What a killed run leaves: an image without its sidecar.
    (out / "b_age+5.json").unlink()
    kept = (out / "a_age+5.nii.gz").stat().st_mtime_ns
    code, _, err = cfgen(*command)
    assert code == 0, err
    assert "a is there already" in err
    assert "b is there already" not in err
    assert subjects() == ["a", "b", "c"]
    assert (out / "a_age+5.nii.gz").stat().st_mtime_ns == kept
    # Another request does not take them for its own.
    code, _, err = cfgen(*command, "--steps", "2")
    assert code == 1
    assert "--overwrite" in err
    # Nor does it touch an image that is not ours.
    (out / "a_age+5.json").unlink()
    shutil.copy(stripped_scan, out / "a_age+5.nii.gz")
    code, _, err = cfgen(*command)
    assert code == 1
    assert "a_age+5.nii.gz" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--age", "old"], 2, "not a number"),
        (["--age", "+20", "--sex", "X"], 2, "no known sex"),
        (["--set", "height=3"], 2, "unknown variable"),
        ([], 2, "nothing to change"),
        (["--age", "+20", "--manifest", "x.csv"], 2, "both --in and --manifest"),
        (["--age", "+20", "--render", "cartoon"], 2, "cartoon"),
        (["--age", "+20", "--age", "+30", "--out", "one.nii.gz"], 2, "one file for 2 outputs"),
        (["--age", "+90", "--from", "age=62,sex=F"], 2, "would become 152"),
        (["--age", "+20", "--device", "tpu"], 2, "tpu"),
        (["--age", "+20", "--bundle", "nowhere"], 4, "no bundle"),
    ],
)
def test_refusals(cfgen, tiny_bundle, stripped_scan, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    if "--bundle" not in arguments:
        arguments = [*arguments, "--bundle", str(tiny_bundle.path)]
    found, out, err = cfgen("counterfactual", "--in", stripped_scan, *arguments)
    assert found == code
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_scan_is_an_unusable_input(cfgen, tiny_bundle, tmp_path):
    code, _, err = cfgen(
        "counterfactual",
        "--in",
        tmp_path / "no.nii.gz",
        "--age",
        "+20",
        "--bundle",
        tiny_bundle.path,
        "--out",
        tmp_path,
    )
    assert code == 3
    assert "no such file" in err


def test_dry_run_names_the_outputs_and_writes_none(cfgen, tiny_bundle, stripped_scan, tmp_path):
    code, out, _ = cfgen(
        "counterfactual",
        "--in",
        stripped_scan,
        "--age",
        "-10:+10:10",
        "--dry-run",
        "--bundle",
        tiny_bundle.path,
        "--out",
        tmp_path / "edits",
    )
    assert code == 0
    assert [line.rpartition("/")[2] for line in out.split()] == [
        f"mni_T1w_age{a}.nii.gz" for a in ("-10", "+0", "+10")
    ]
    assert not (tmp_path / "edits").exists()


def test_config_file_gives_options_and_the_command_line_wins(
    cfgen, tiny_bundle, stripped_scan, tmp_path
):
    (tmp_path / "run.toml").write_text(
        f'age = ["+10", "+20"]\nbundle = "{tiny_bundle.path}"\n'
        f'out = "{tmp_path}/a"\ndry-run = true\n'
    )
    config = ["--config", tmp_path / "run.toml"]
    _, out, _ = cfgen("counterfactual", "--in", stripped_scan, *config)
    assert out.split() == [f"{tmp_path}/a/mni_T1w_age+{n}.nii.gz" for n in (10, 20)]
    _, out, _ = cfgen("counterfactual", "--in", stripped_scan, *config, "-o", tmp_path / "b")
    assert out.split()[0] == f"{tmp_path}/b/mni_T1w_age+10.nii.gz"
    (tmp_path / "run.toml").write_text("agee = 3\n")
    code, _, err = cfgen("counterfactual", "--in", stripped_scan, *config)
    assert code == 2
    assert "--agee" in err


def test_info_names_parts_and_ranges(cfgen, tiny_bundle):
    code, out, _ = cfgen("info", tiny_bundle.path)
    assert code == 0
    assert "age: 20 to 86 years in training" in out
    assert "autoencoder" in out
    _, out, _ = cfgen("info", tiny_bundle.path, "--json")
    assert set(json.loads(out)["bundle"]["parts"]) == set(tiny_bundle.parts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "hippocampus=-10%", "--render", "residual"), "not with --by conditions"),
        (("--age", "+10", "--rates", "within", "--render", "warp"), "not with --by conditions"),
        (("--sex", "M", "--scale-head", "--field"), "--field: beside --scale-head"),
        (("--age", "+10", "--samples", "99"), "at most 21 of moved tissue"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_options_that_do_not_go_together_are_told_before_the_first_scan(
    cfgen, stripped_scan, tmp_path, arguments, said, many
):
    source = ("--in", stripped_scan, "--from", "age=40,sex=F", "--dry-run")
    if many:
        (tmp_path / "cohort.csv").write_text(f"subject,image,age,sex\n1,{stripped_scan},40,F\n")
        source = ("--manifest", tmp_path / "cohort.csv")
    code, _, err = cfgen("counterfactual", *source, *arguments, "--out", tmp_path / "edits")
    assert code == 2
    assert said in err
    assert not (tmp_path / "edits").exists()


@pytest.mark.parametrize(("age", "warned"), [("85", False), ("90", True)])
def test_moved_tissue_extrapolates_beyond_what_the_causal_model_saw(
    cfgen, stripped_scan, tmp_path, age, warned
):
    given = ("--in", stripped_scan, "--from", "age=40,sex=F", "--out", tmp_path / "edits")
    code, _, err = cfgen("counterfactual", *given, "--age", age, "--dry-run")
    assert code == 0
    assert ("an extrapolation" in err) == warned


def test_help_keeps_examples_on_their_lines(cfgen):
    _, out, _ = cfgen("counterfactual", "--help")
    example = (
        "cfgen counterfactual --in sub01.nii.gz --from age=62,sex=F --age -20:+20:10 --out edits/"
    )
    assert f"    {example}" in out.splitlines()


def test_a_dry_run_promises_nothing_of_a_scan_that_cannot_be_read(cfgen, tmp_path):
    four = nib.Nifti1Image(np.ones((4, 4, 4, 2), np.int16), np.eye(4))
    nib.save(four, tmp_path / "series.nii.gz")
    given = ("--in", tmp_path / "series.nii.gz", "--from", "age=40,sex=F", "--dry-run")
    code, out, err = cfgen("counterfactual", *given, "--age", "+5", "--out", tmp_path / "edits")
    assert code == 3
    assert out.strip() == ""
    assert err.count("series.nii.gz") == 1
