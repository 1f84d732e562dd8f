"""The bytes of image files: streams that are checked to their end, and what a file is instead.

A gzip file carries a checksum behind its data, and a reader that stops at the last voxel never sees
it. Files that are no image are named for what they are, with what to do about it.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from cfgen.errors import ImageError

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
GZIP = b"\x1f\x8b"
DAMAGED = "the image data end too early or are damaged"
# What nibabel, numpy, zlib and the file system raise of bytes that make no sense.
READ_FAULTS = (
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    MGHError,
    struct.error,
    zlib.error,
    EOFError,
    OSError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
)
# Where a format's first bytes stand, the bytes, what it is, what to do.
_FORMATS = (
    (128, b"DICM", "a DICOM file", "convert the series with dcm2niix"),
    (0, b"version https://git-lfs", "a Git LFS pointer: the image is not here", "git lfs pull"),
    (0, GZIP, "gzip-compressed, once more than its name says", "gunzip it, or name it .nii.gz"),
    (0, b"PK\x03\x04", "a zip archive", "unzip it"),
    (0, b"BZh", "compressed with bzip2", "bunzip2 it, then gzip it"),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "unxz it, then gzip it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd it, then gzip it"),
    (0, b"\x89HDF", "an HDF5 file (MINC 2?)", "convert it with mnc2nii or nib-convert"),
    (0, b"CDF\x01", "a MINC file", "convert it with mnc2nii or nib-convert"),
    (0, b"NRRD", "an NRRD file", "convert it, for example with SimpleITK"),
    (0, b"ObjectType", "a MetaImage file", "convert it, for example with SimpleITK"),
    (0, b"<!DOCTYPE", "a web page", "download the image again"),
    (0, b"<html", "a web page", "download the image again"),
)
EXPECTED = "a NIfTI-1, NIfTI-2 or MGH file (.nii, .nii.gz, .mgz)"


def is_image_path(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def strip_suffix(path: Path) -> str:
    """The file's name without an image suffix: 'a/sub-01_T1w.nii.gz' -> 'sub-01_T1w'."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_compressed(path: Path) -> bool:
    """Does the name say so?"""
    return path.name.lower().endswith((".gz", ".mgz"))


def is_mgh(path: Path) -> bool:
    return path.name.lower().endswith((".mgz", ".mgh"))


def absent(path: Path, error: OSError | None = None) -> ImageError:
    """The error of a file that cannot be opened: it tells a link without its content from a file
    that never was."""
    # Where the last link of a chain points to; names that no system call takes are no links.
    target = os.path.realpath(path) if os.path.islink(path) else ""
    if "annex/objects/" in target.replace("\\", "/"):
        return ImageError(path, "a git-annex link: the image is not here", "", _annex_get(path))
    if target:
        return ImageError(path, f"a link to '{target}', which is not there", "an image")
    if error is None or error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ImageError(path, "no such file", "a .nii, .nii.gz or .mgz image")
    return ImageError(path, f"cannot be read ({error.strerror or error})", "a readable image")


@contextmanager
def image_stream(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of an image file, from the start. Raises ImageError when the file is
    not there or its first bytes are another format's."""
    try:
        if path.is_dir():
            raise ImageError(
                path,
                "is a folder",
                "one .nii, .nii.gz or .mgz image",
                "give a BIDS folder as --manifest; convert DICOM by dcm2niix",
            )
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise absent(path, error if isinstance(error, OSError) else None) from error
    with file:
        _check_kind(file, path)
        if not is_compressed(path):
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            stream = cast(BinaryIO, unpacked)
            if not is_mgh(path):
                yield stream
                return
            # An MGH header goes on behind the data: the file is unpacked once, not twice.
            whole = io.BytesIO()
            read_to_end(stream, path, whole.write)
            whole.seek(0)
            yield whole


def read_to_end(
    stream: BinaryIO, path: Path, keep: Callable[[bytes], object] = lambda part: None
) -> None:
    """Read what is left, so that gzip compares its checksum and its length. Raises ImageError."""
    try:
        while part := stream.read(1 << 20):
            keep(part)
    except gzip.BadGzipFile as error:
        text = str(error)
        why = "other bytes follow the compressed ones" if text.startswith("Not a gz") else text
        raise damaged(path, why) from error
    except READ_FAULTS as error:
        raise damaged(path, error) from error


def check_length(path: Path, needed: int) -> None:
    """Raises ImageError where a file does not hold `needed` bytes, before memory is asked for."""
    size = path.stat().st_size
    held = size
    if is_compressed(path):
        # Deflate packs no more than 1032 bytes into one. Scans come nowhere near; where the header
        # asks for that much, the bytes are counted first.
        held = size * 1032
        if size * 50 < needed <= held:
            held = _unpacked_size(path)
    if held < needed:
        raise damaged(path, f"a file of {size} bytes, the header speaks of {needed}")


def _unpacked_size(path: Path) -> int:
    size = 0

    def count(part: bytes) -> None:
        nonlocal size
        size += len(part)

    with gzip.open(path) as unpacked:
        read_to_end(cast(BinaryIO, unpacked), path, count)
    return size


def damaged(path: Path, why: object, expected: str = "") -> ImageError:
    return ImageError(path, f"{DAMAGED} ({why})", expected, "copy or export the file again")


def other_format(head: bytes, path: Path) -> ImageError | None:
    """The error that names what a file is by its first bytes; None when they say nothing."""
    if head.startswith((b"/annex/objects/", b"../", b".git/annex")) and b"annex/objects/" in head:
        return ImageError(path, "a git-annex pointer: the image is not here", "", _annex_get(path))
    for start, magic, what, fix in _FORMATS:
        if head[start : start + len(magic)].lower() == magic.lower():
            return ImageError(path, f"not a readable image but {what}", EXPECTED, fix)
    return None


def _annex_get(path: Path) -> str:
    return f"run 'git annex get {path.name}' (or 'datalad get {path.name}') in its folder"


def _check_kind(file: BinaryIO, path: Path) -> None:
    """Raises ImageError where the first bytes are not what the name says."""
    try:
        head = file.read(540)
        file.seek(0)
    except OSError as error:
        raise absent(path, error) from error
    if not head:
        raise ImageError(path, "not a readable image: the file is empty", EXPECTED)
    pair = re.fullmatch(r"(.+)\.(?:hdr|img)(\.gz)?", path.name, re.IGNORECASE)
    if pair:
        raise ImageError(
            path,
            "half of an image pair (.hdr and .img)",
            "one file (.nii, .nii.gz, .mgz)",
            f"convert it: nib-convert {pair[1]}.hdr{pair[2] or ''} {pair[1]}.nii.gz",
        )
    packed = head.startswith(GZIP)
    if packed and not is_compressed(path):
        new_name = path.with_suffix(".mgz").name if is_mgh(path) else path.name + ".gz"
        raise ImageError(
            path, "gzip-compressed, and its name does not say so", "", f"rename it to {new_name}"
        )
    if packed != is_compressed(path) and (is_mgh(path) or head[344:347] in (b"n+1", b"ni1")):
        new_name = strip_suffix(path) + (".mgh" if is_mgh(path) else ".nii")
        raise ImageError(
            path, "not compressed, though its name says so", "", f"rename it to {new_name}"
        )
    if not packed or not is_compressed(path):
        fault = other_format(head, path)
        if fault is not None:
            raise fault
    if packed != is_compressed(path):
        raise ImageError(
            path,
            "not a readable image: not gzip-compressed, though its name says so",
            EXPECTED,
            "convert DICOM with dcm2niix, or copy the file again",
        )
