"""Prompts as the paper words them, and slices there and back, without any model."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from cfgen.data.volume import Volume
from cfgen.errors import ImageError, UsageError
from cfgen.sd import extra
from cfgen.sd.prompts import (
    DIVERSE,
    Style,
    article,
    binned,
    concepts,
    instruction,
    number_words,
    prompt,
)
from cfgen.sd.slices import Slices, parse_range

WOMAN = {"age": 70.2, "sex": "F", "diagnosis": "CN"}


@pytest.mark.parametrize(
    ("values", "style", "said"),
    [
        (WOMAN, Style("simple", False), "a brain MRI"),
        (WOMAN, Style("simple"), "a brain MRI of a 70 year old female with CN"),
        (WOMAN, Style(age="word"), "a brain MRI of a seventy year old female with CN"),
        ({"age": 81.0}, Style(), "a brain MRI of an 81 year old person"),
        ({"sex": "M"}, Style(), "a brain MRI of a male"),
        ({"diagnosis": "AD"}, Style(), "a brain MRI with AD"),
        ({}, Style(), "a brain MRI"),
    ],
)
def test_a_prompt_tells_what_is_known(values, style, said):
    assert prompt(values, style) == said


def test_the_diverse_prompts_are_21_of_one_noun():
    assert len(set(DIVERSE)) == 21
    said = {prompt(WOMAN, Style(), template, "<new>") for template in DIVERSE}
    assert len(said) == 21
    assert all("<new>" in text and "70 year old female with CN" in text for text in said)
    assert not any("brain MRI" in text for text in said)
    assert len(concepts({"diagnosis": "AD"}, Style("simple", False))) == 21


@pytest.mark.parametrize(
    ("age", "said"),
    [
        ("number", "Age this CN 70 years old female brain MRI into a 77 brain MRI with MCI"),
        (
            "word",
            "Age this CN seventy years old female brain MRI into a seventy-seven brain MRI with "
            "MCI",
        ),
        ("binned", "Age this CN female brain MRI moderately into a brain MRI with MCI"),
    ],
)
def test_an_instruction_is_the_paper_s(age, said):
    later = {"age": 77.0, "sex": "F", "diagnosis": "MCI"}
    assert instruction(WOMAN, later, Style(age=age)) == said


def test_back_in_time_and_without_an_age():
    assert instruction({"age": 70.0}, {"age": 60.0}, Style()).startswith("Rejuvenate this 70 years")
    with pytest.raises(UsageError, match="age is unknown"):
        instruction({}, {"age": 60.0}, Style())
    with pytest.raises(UsageError, match="a change of age"):
        prompt(WOMAN, Style(age="binned"))


def test_bins_are_the_paper_s():
    said = [binned(years) for years in (4.9, 5.0, 10.0, 10.1, -20.0)]
    assert said == ["slightly", "moderately", "moderately", "significantly", "significantly"]


def test_numbers_in_words():
    words = {0: "zero", 13: "thirteen", 40: "forty", 77: "seventy-seven", 100: "one hundred"}
    words |= {103: "one hundred and three"}
    assert {n: number_words(n) for n in words} == words
    articles = {"8": "an", "11": "an", "18": "an", "70": "a", "one": "a", "eighty": "an"}
    assert {text: article(text) for text in articles} == articles


def scan(codes, shape=(10, 12, 8), zooms=(1.0, 1.0, 2.0)):
    """A bright corner: front, left, up, in any orientation of the voxels."""
    data = np.zeros(shape, np.float32)
    data[2:-2, 2:-2, 1:-1] = 0.4
    data[2:4, -4:-2, -3:-1] = 1.0
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    image = nib.Nifti1Image(data, np.diag([*zooms, 1.0])).as_reoriented(turn)
    return Volume(np.asarray(image.dataobj), image.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL", "PIR", "SRA"])
def test_slices_lie_as_the_body_does(codes):
    slices = Slices.of(scan(codes), 24)
    assert np.array_equal(slices.back(slices.data), slices.scan.data)
    places = slices.between(0, 100)
    assert places == [1, 2, 3, 4, 5, 6]
    picture = slices.picture(6)
    assert picture.shape == (3, 24, 24)
    assert torch.equal(picture[0], picture[2])
    # Front is up, left is left: the corner is bright there and in no other quarter.
    bright = picture[0] > 0.5
    assert bright[:12, :12].any()
    assert not bright[12:].any()
    assert not bright[:, 12:].any()
    # The longer side, 12 mm from back to front, fills the picture; 10 mm leave 2 pixels a side.
    assert (picture[0][:, :2] == -1).all()
    axis, own = slices.axis_and_places(places)
    assert nib.aff2axcodes(slices.scan.affine)[axis] in "SI"
    for place, voxel in zip(places, own, strict=True):
        there = slices.scan.data.take(voxel, axis).sum()
        assert there == pytest.approx(slices.data[:, :, place].sum())


def test_pixels_are_square_in_mm():
    slices = Slices.of(scan("RAS", zooms=(2.0, 1.0, 1.0)), 40)
    # 20 mm to the side, 12 mm to the front.
    lit = slices.picture(4)[0] > -0.9
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert (len(columns), len(rows)) == pytest.approx((24, 16), abs=2)


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_a_slice_comes_back_from_a_larger_picture(codes):
    """Smooth waves of 6 voxels: a shift of half a pixel would change 0.02."""
    i, j, _ = np.indices((24, 20, 4))
    waves = 0.5 + 0.2 * (np.sin(2 * np.pi * i / 6) + np.cos(2 * np.pi * j / 6))
    turn = nib.orientations.axcodes2ornt(codes)
    image = nib.Nifti1Image(waves.astype(np.float32), np.eye(4)).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
    )
    slices = Slices.of(Volume(np.asarray(image.dataobj), image.affine), 120)
    change = (slices.values(slices.picture(2)) - slices.data[:, :, 2])[3:-3, 3:-3]
    assert np.abs(change[slices.data[3:-3, 3:-3, 2] < 0.95 * slices.white]).max() < 0.012


def test_ranges():
    slices = Slices.of(scan("RAS"), 16)
    assert slices.between(60, 60) == [4]
    assert slices.between(55, 58) == [4]
    assert parse_range("45:65") == (45, 65)
    assert parse_range("50") == (50, 50)
    for wrong in ("", "a", "60:40", "-1:5", "0:101", "nan"):
        with pytest.raises(UsageError, match="--slices"):
            parse_range(wrong)
    with pytest.raises(ImageError, match="no intensity above 0"):
        Slices.of(Volume(np.full((4, 4, 4), -1, np.float32), np.eye(4)), 16)


def test_without_the_extra_the_command_says_how_to_install_it(cfgen, monkeypatch, tmp_path):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    for command, more in {
        "sd-tune": "--manifest",
        "sd-edit": "--in",
        "sd-generate": "--age",
    }.items():
        code, _, err = cfgen(command, "--model", tmp_path, more, "5", "--out", tmp_path / "y")
        assert code == 4
        assert "pip install 'cfgen[sd]'" in err
        assert "diffusers and transformers and peft" in err
