"""Errors that a user can act on.

Every message names where (file and line, or header field), what was found, what was expected and
what to do. The class carries the exit code of the command line, so that scripts can tell a bad
manifest from a missing model. Anything that is not a `CfgenError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_UNUSABLE_INPUT = 3
EXIT_MISSING_MODEL = 4
EXIT_OUT_OF_MEMORY = 5
EXIT_INTERRUPTED = 75


class CfgenError(Exception):
    """A mistake that the user can mend.

    `where` is a file, a file:line or a header field; `found` and `expected` are said in the user's
    units; `fix` is an instruction. Parts left empty are left out of the message.
    """

    exit_code = EXIT_UNUSABLE_INPUT

    def __init__(self, where: object, found: str, expected: str = "", fix: str = "") -> None:
        self.where, self.found, self.expected, self.fix = str(where), found, expected, fix
        parts = [f"{where}: {found}"]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[type[CfgenError], tuple[str, ...]]:
        """Errors come back from other processes."""
        return type(self), (self.where, self.found, self.expected, self.fix)


class UsageError(CfgenError):
    """An option, a value or a combination of them that makes no sense."""

    exit_code = EXIT_USAGE


class ManifestError(CfgenError):
    """A manifest or table that cannot be used; the message lists every fault at once."""

    exit_code = EXIT_USAGE


class ImageError(CfgenError):
    """An image file or its header that cannot be used."""


class BundleError(CfgenError):
    """A model bundle that is missing, damaged, of another version or lacks a part."""

    exit_code = EXIT_MISSING_MODEL


class ToolError(CfgenError):
    """An external program or an optional package that is not there or failed."""

    exit_code = EXIT_MISSING_MODEL


class Interrupted(CfgenError):  # noqa: N818 - not an error of the user's
    """Stopped by a signal after a checkpoint: the same command goes on from there."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class Notice:
    """What a user should know and need not mend: `code` is for programs, `text` for people."""

    code: str
    text: str
