"""Records beside images: dataclasses as JSON, in the CamelCase of BIDS, and back.

A field's key is its name in CamelCase, or what `key(...)` says. Fields that are None by default are
left out while they are None.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cfgen import __version__
from cfgen.data.volume import write_atomically
from cfgen.errors import ImageError

Record = TypeVar("Record")


def key(name: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that has a key of its own."""
    return dataclasses.field(default=default, metadata={"key": name})


def _key(field: dataclasses.Field[Any]) -> str:
    name = field.metadata.get("key")
    return name or "".join(part[:1].upper() + part[1:] for part in field.name.split("_"))


def to_json(value: Any) -> Any:
    """What `json.dumps` takes of records, lists and dictionaries of them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {_key(f): to_json(v) for f, v in pairs if not (v is None and f.default is None)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(kind: type[Record], data: Any) -> Record:
    """The inverse of `to_json`; keys that a record does not know are ignored.

    Raises KeyError for a key that is missing, TypeError for a value of another kind.
    """
    return typing.cast(Record, _read(kind, data, ""))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _first(tuple(a for a in arguments if a is not type(None)), data, where)
    if origin is list:
        return [_read(arguments[0], v, where) for v in _expect(list, data, where)]
    if origin is tuple:
        return tuple(_read(arguments[0], v, where) for v in _expect(list, data, where))
    if origin is dict:
        pairs = _expect(dict, data, where).items()
        return {k: _read(arguments[1], v, f"{where}.{k}") for k, v in pairs}
    if origin is typing.Literal:
        if data not in arguments:
            raise TypeError(f"{where or 'value'} is {data!r}, expected one of {arguments}")
        return data
    if dataclasses.is_dataclass(kind):
        return _fields(typing.cast(type, kind), _expect(dict, data, where), where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return _expect(kind, data, where)


def _fields(kind: type, data: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        name = _key(field)
        if name in data:
            given[field.name] = _read(hints[field.name], data[name], f"{where}.{name}".strip("."))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise KeyError(f"{where}.{name}".strip("."))
    return kind(**given)


def _first(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if len(kinds) == 1:
        # It says itself what is wrong.
        return _read(kinds[0], data, where)
    for kind in kinds:
        try:
            return _read(kind, data, where)
        except (KeyError, TypeError):
            continue
    raise TypeError(f"{where or 'value'} is {data!r}")


def _expect(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{where or 'value'} is {data!r}, expected {kind.__name__}")
    return data


def write_record(record: Any, path: Path, words: Mapping[str, Any] | None = None) -> None:
    """The last file of a scan: without it nothing counts as done. `words` are further keys."""
    text = json.dumps({**(words or {}), **to_json(record)}, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_record(kind: type[Record], path: Path, expected: str) -> Record:
    """Raises ImageError, which says what was `expected`, when it is not there or says other
    things."""
    if not path.exists():
        raise ImageError(path, "no such file", expected)
    try:
        return from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ImageError(path, f"does not say {error.args[0]}", expected) from error
    except (OSError, ValueError, TypeError) as error:
        raise ImageError(path, f"cannot be read ({error})", expected) from error


@dataclasses.dataclass(frozen=True)
class Software:
    """What made a file."""

    name: str
    version: str


def this_software() -> list[Software]:
    return [Software("cfgen", __version__)]


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file by its name, never its path: the same run writes the same bytes anywhere."""

    file: str
    sha256: str = key("SHA256")
