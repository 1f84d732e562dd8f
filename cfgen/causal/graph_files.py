"""Causal graphs from files: TOML, DOT, DAGitty's text and GML.

The three languages are read as far as they say nodes, edges and attributes; nothing is drawn, so
that no graphviz is needed. Attributes `kind`, `unit`, `optional` and `intercept` mean what they
mean in TOML; others (positions, colours) are left alone. A graph with edges of no direction, or
with latent variables, is refused by name: no mechanism can be fitted to them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from cfgen.causal.causal_graph import KINDS, Declared, Sketch
from cfgen.errors import UsageError

SUFFIXES = (".toml", ".dot", ".gv", ".dagitty", ".txt", ".gml")
_FIELDS = {"kind": str, "unit": str, "optional": bool, "intercept": bool}
_TOKEN = re.compile(
    r'\s+|//[^\n]*|\#[^\n]*|/\*.*?\*/|(?P<text>"(?:\\.|[^"\\])*")'
    r"|(?P<arrow><->|->|<-|--|@-@)|(?P<mark>[{}\[\]=,;:])|(?P<word>[^\s{}\[\]=,;:\"<>]+?(?=--|->|<-|[\s{}\[\]=,;:\"<>]|$))",
    re.S,
)

# Statements of DOT and DAGitty that set attributes and name no node.
_SETTINGS = ("node", "edge", "graph", "bb")


def default_graph() -> Sketch:
    """The graph that the package ships."""
    file = resources.files("cfgen.causal").joinpath("default_graph.toml")
    return _from_toml(file.read_text("utf-8"), "the default graph")


def read_graph(path: Path) -> Sketch:
    """The graph of a file, by its ending; .txt is DAGitty's.

    Raises UsageError for a file that cannot be read, with its line, and for edges without a
    direction.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(path, f"ends in '{path.suffix}'", f"one of {', '.join(SUFFIXES)}")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"cannot be read ({error})", "a causal graph as text") from error
    match path.suffix.lower():
        case ".toml":
            return _from_toml(text, str(path))
        case ".gml":
            return _from_gml(text, str(path))
        case _:
            return _from_dot(text, str(path))


def _from_toml(text: str, where: str) -> Sketch:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(where, f"is no TOML ({error})", "a table a node: [age]") from error
    nodes = {}
    for name, entry in data.items():
        if not isinstance(entry, dict):
            raise UsageError(where, f"'{name}' is no table", f'[{name}] with parents = ["..."]')
        parents = entry.get("parents", [])
        if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
            raise UsageError(where, f"[{name}] parents = {parents!r}", "a list of names")
        unknown = sorted(set(entry) - {"parents", *_FIELDS})
        if unknown:
            expected = f"parents, {', '.join(_FIELDS)}"
            raise UsageError(where, f"[{name}] has an unknown key '{unknown[0]}'", expected)
        nodes[name] = _declared(name, parents, entry, where)
    return Sketch(nodes, where)


def _declared(name: str, parents: list[str], entry: dict[str, Any], where: str) -> Declared:
    values: dict[str, Any] = {}
    for key, kind in _FIELDS.items():
        value = entry.get(key)
        if value is None:
            continue
        if kind is bool and str(value).lower() in ("true", "false", "0", "1"):
            value = str(value).lower() in ("true", "1")
        if not isinstance(value, kind) or (key == "kind" and value not in KINDS):
            expected = " or ".join(KINDS) if key == "kind" else kind.__name__
            raise UsageError(where, f"{name}: {key} = {value!r}", expected)
        values[key] = value
    return Declared(tuple(dict.fromkeys(parents)), **values)


def _tokens(text: str, where: str) -> list[tuple[str, str, int]]:
    """(kind, text, line) of DOT, DAGitty or GML."""
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        line = text.count("\n", 0, place) + 1
        if match is None:
            raise UsageError(f"{where}:{line}", f"'{text[place : place + 10]}'", "a name or arrow")
        if match.lastgroup is not None:
            value = match[match.lastgroup]
            if match.lastgroup == "text":
                value = re.sub(r"\\(.)", r"\1", value[1:-1].replace("\\n", " "))
            tokens.append((match.lastgroup, value, line))
        place = match.end()
    return tokens


class _Reader:
    """The statements of a DOT or DAGitty graph."""

    def __init__(self, text: str, where: str) -> None:
        self.tokens, self.where, self.place = _tokens(text, where), where, 0
        self.attributes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str]] = []

    def peek(self) -> tuple[str, str, int]:
        end = self.tokens[-1][2] if self.tokens else 1
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "", end)

    def take(self) -> tuple[str, str, int]:
        token = self.peek()
        self.place += 1
        return token

    def fail(self, found: str, expected: str, line: int) -> UsageError:
        return UsageError(f"{self.where}:{line}", found, expected)

    def read(self) -> None:
        """Everything to the end; raises UsageError with the line."""
        head = []
        while self.peek()[1] != "{":
            kind, value, line = self.take()
            if kind == "end":
                raise self.fail("no '{'", "digraph { a -> b } or dag { a -> b }", line)
            head.append(value.lower())
        if "graph" in head and "digraph" not in head:
            raise self.fail("is a graph without directions", "digraph or dag", self.peek()[2])
        self.take()
        self.block()

    def block(self) -> None:
        while True:
            kind, value, line = self.peek()
            if value == "}" and kind == "mark":
                self.take()
                return
            if kind == "end":
                raise self.fail("ends inside the graph", "'}'", line)
            self.statement()

    def statement(self) -> None:
        kind, value, line = self.peek()
        if kind == "mark" and value == ";":
            self.take()
            return
        if kind == "word" and value == "subgraph":
            while self.take()[1] != "{":
                if self.peek()[0] == "end":
                    raise self.fail("subgraph without '{'", "{", line)
            self.block()
            return
        left = self.names()
        chain = False
        while self.peek()[0] == "arrow":
            _, arrow, line = self.take()
            right = self.names()
            chain = True
            if arrow not in ("->", "<-"):
                text = f"{left[0]} {arrow} {right[0]} has no single direction"
                raise self.fail(text, "->; a hidden common cause has no mechanism to fit", line)
            pairs = [(a, b) for a in left for b in right]
            self.edges += pairs if arrow == "->" else [(b, a) for a, b in pairs]
            left = right
        attributes = self.options()
        if self.peek()[1] == "=" and not attributes:
            # rankdir = LR
            self.take()
            self.take()
            self.forget(left, chain)
        elif not chain and left[0] not in _SETTINGS:
            self.declare(left, attributes, line)

    def forget(self, names: list[str], chain: bool) -> None:
        for name in names:
            if not chain and not any(name in edge for edge in self.edges):
                self.attributes.pop(name, None)

    def declare(self, names: list[str], attributes: dict[str, str], line: int) -> None:
        for name in names:
            if "latent" in attributes or "unobserved" in attributes:
                text = f"'{name}' is latent"
                raise self.fail(text, "variables that the table has", line)
            self.attributes.setdefault(name, {}).update(attributes)

    def names(self) -> list[str]:
        """A node, or several in braces."""
        kind, value, line = self.take()
        if kind == "mark" and value == "{":
            names = []
            while self.peek()[1] != "}":
                kind, value, line = self.take()
                if kind == "end":
                    raise self.fail("'{' without '}'", "}", line)
                if kind in ("word", "text"):
                    names.append(value)
            self.take()
        elif kind in ("word", "text"):
            names = [value]
        else:
            raise self.fail(f"'{value}'" if value else "ends here", "a name", line)
        for name in names:
            if name not in _SETTINGS:
                self.attributes.setdefault(name, {})
        return names

    def options(self) -> dict[str, str]:
        """[kind=volume, pos="0,1"]; {} where there are none."""
        out: dict[str, str] = {}
        while self.peek()[1] == "[" and self.peek()[0] == "mark":
            self.take()
            while self.peek()[1] != "]":
                kind, key, line = self.take()
                if kind == "end":
                    raise self.fail("'[' without ']'", "]", line)
                if kind not in ("word", "text"):
                    continue
                value = "true"
                if self.peek()[1] == "=":
                    self.take()
                    value = self.take()[1]
                out[key.lower()] = value
            self.take()
        return out


def _from_dot(text: str, where: str) -> Sketch:
    reader = _Reader(text, where)
    reader.read()
    return _sketch(reader.attributes, reader.edges, where)


def _sketch(
    attributes: dict[str, dict[str, str]], edges: list[tuple[str, str]], where: str
) -> Sketch:
    if not attributes:
        raise UsageError(where, "has no nodes", "a graph such as age -> tiv")
    parents: dict[str, list[str]] = {name: [] for name in attributes}
    for cause, effect in edges:
        parents[effect].append(cause)
    nodes = {n: _declared(n, parents[n], dict(attributes[n]), where) for n in attributes}
    return Sketch(nodes, where)


def _from_gml(text: str, where: str) -> Sketch:
    tokens = iter(_tokens(text, where))
    data = _gml_list(tokens, where, top=True)
    graphs = [value for key, value in data if key == "graph" and isinstance(value, list)]
    if len(graphs) != 1:
        raise UsageError(where, f"{len(graphs)} graphs", "graph [ node [ id 1 label a ] ... ]")
    graph = graphs[0]
    if ("directed", "1") not in [pair for pair in graph if not isinstance(pair[1], list)]:
        raise UsageError(where, "is a graph without directions", "directed 1")
    labels: dict[str, str] = {}
    attributes: dict[str, dict[str, str]] = {}
    edges = []
    for key, value in graph:
        if not isinstance(value, list):
            continue
        entry = {k: v for k, v in value if isinstance(v, str)}
        if key == "node":
            if "id" not in entry:
                raise UsageError(where, "a node without an id", "node [ id 1 label a ]")
            name = entry.get("label", entry["id"])
            labels[entry["id"]] = name
            attributes[name] = {k.lower(): v for k, v in entry.items()}
        elif key == "edge":
            edges.append((entry.get("source", ""), entry.get("target", "")))
    unknown = [end for edge in edges for end in edge if end not in labels]
    if unknown:
        raise UsageError(where, f"an edge of an unknown node '{unknown[0]}'", ", ".join(labels))
    return _sketch(attributes, [(labels[a], labels[b]) for a, b in edges], where)


def _gml_list(
    tokens: Iterator[tuple[str, str, int]], where: str, top: bool = False
) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for kind, key, line in tokens:
        if kind == "mark" and key == "]" and not top:
            return pairs
        if kind != "word":
            raise UsageError(f"{where}:{line}", f"'{key}'", "a key")
        following = next(tokens, None)
        if following is None:
            raise UsageError(f"{where}:{line}", f"'{key}' has no value", "a value")
        value: Any = following[1]
        if following[0] == "mark":
            if following[1] != "[":
                raise UsageError(f"{where}:{following[2]}", f"'{following[1]}'", "a value or [")
            value = _gml_list(tokens, where)
        pairs.append((key.lower(), value))
    if not top:
        raise UsageError(where, "'[' without ']'", "]")
    return pairs
