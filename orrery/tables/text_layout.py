"""Where the names of a text table are, and what separates its fields, found by its first lines."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from .base import open_binary

WHITE_SPACE = " "
SEPARATORS = (",", ";", "\t", "|")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eEdD][-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)
_NUMBERED = re.compile(r"#\s*(\d+)\s+(\S+)(?:.*\[(\S+)\]\s*$)?")  # SExtractor's
_BYTE_BY_BYTE = "Byte-by-byte Description"  # of the AAS and of CDS


class Head(NamedTuple):
    """The first lines of a text file."""

    comments: list[str]  # those that begin with #, and blank ones
    first: str  # the line after them
    second: str
    skip: int  # lines up to and including `first`


class Layout(NamedTuple):
    """How a text table is read; ``separator`` WHITE_SPACE is any number of spaces and tabs."""

    names: list[str]
    separator: str
    skip: int  # lines before the first row
    units: dict[str, str | None]


def read_head(path: str) -> Head:
    """Raises ``ValueError`` for what is no UTF-8 text, or has no line besides comments."""
    comments: list[str] = []
    try:
        with open_binary(path) as file:
            if b"\0" in file.read(65_536):
                raise ValueError(f"{path}: binary data, not text; is its file ending right?")
            file.seek(0)
            for skip, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if skip == 1 else "utf-8").rstrip("\r\n")
                if line.strip() and not line.lstrip().startswith("#"):
                    second = file.readline().decode("utf-8").rstrip("\r\n")
                    return Head(comments, line, second, skip)
                comments.append(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); convert it with iconv") from error
    raise ValueError(f"{path}: has no line of column names")


def has_byte_by_byte_description(path: str) -> bool:
    """Whether it is a machine-readable table of the AAS or of CDS, whose head describes it."""
    with open_binary(path) as file:
        return _BYTE_BY_BYTE.encode() in file.read(200_000)


def layout(path: str, head: Head, prefer_commas: bool) -> Layout:
    """Of a table with a line of names, which may be a comment just before the rows.

    ``prefer_commas``: a comma separates if there is one, as in a .csv. Raises ``ValueError`` where
    there are no names.
    """
    separator = _separator(head, prefer_commas)
    fields = split(head.first, separator)
    if numbered := _numbered(head.comments, len(fields)):
        return Layout(list(numbered), WHITE_SPACE, head.skip - 1, numbered)
    numeric = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if any(numeric) and (names := _commented(head.comments, len(fields), separator)):
        return Layout(names, separator, head.skip - 1, {})
    if all(numeric) or (any(numeric) and separator == WHITE_SPACE):
        raise ValueError(
            f"{path}: the first line is numbers; a table must begin with a line of {len(fields)} "
            "column names, which may begin with #"
        )
    return Layout(fields, separator, head.skip, {})


def split(line: str, separator: str) -> list[str]:
    """The fields of a line, without the blanks around them."""
    if separator == WHITE_SPACE:
        return [field.strip('"') for field in re.findall(r'"[^"]*"|\S+', line)]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator), [])]


def _separator(head: Head, prefer_commas: bool) -> str:
    if prefer_commas and "," in head.first:
        return ","
    for separator in SEPARATORS:
        first, second = (len(split(line, separator)) for line in (head.first, head.second))
        if first > 1 and (first == second or not head.second.strip()):
            return separator
    return "," if prefer_commas else WHITE_SPACE


def _commented(comments: Sequence[str], count: int, separator: str) -> list[str] | None:
    """The names in the last comment that has as many fields as the rows, each another word."""
    for comment in reversed(comments):
        text = comment.strip().lstrip("#").strip()
        for by in (separator, WHITE_SPACE):
            names = split(text, by)
            if len(names) == count == len(set(names)) and all(map(_is_name, names)):
                return names
    return None


def _is_name(text: str) -> bool:
    return bool(re.match(r"[^\W\d]|\d+\w*[^\W\d]|[\[(]", text)) and not _NUMBER.fullmatch(text)


def _numbered(comments: Sequence[str], count: int) -> dict[str, str | None]:
    """Name -> unit of SExtractor's header; an array takes the numbers up to the next name's."""
    found = [match for line in comments if (match := _NUMBERED.match(line))]
    numbers = [int(match[1]) for match in found]
    if not found or numbers[0] != 1 or numbers != sorted(set(numbers)) or numbers[-1] > count:
        return {}
    names: dict[str, str | None] = {}
    for match, begin, end in zip(found, numbers, [*numbers[1:], count + 1], strict=True):
        names |= {f"{match[2]}_{i}" if i else match[2]: match[3] for i in range(end - begin)}
    return names


class Tabbed:
    """A text file whose fields are separated by white space, as one with tabs and no comments."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file, self._ready = file, b""
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty at the end of the file."""
        while not self._ready:
            block = self._file.read(2**20)
            if not block:
                return b""
            self._ready = _tabbed(block + self._file.readline())
        size = len(self._ready) if size < 0 else size
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece

    def close(self) -> None:
        self.closed = True


def _tabbed(lines: bytes) -> bytes:
    lines = re.sub(rb"(?m)^[ \t]*(#.*)?\r?\n?|[ \t]+(?=\r?$)", b"", lines)
    if b'"' in lines:
        return re.sub(rb'"[^"\n]*"|[ \t]+', lambda m: m[0] if m[0][:1] == b'"' else b"\t", lines)
    return re.sub(rb"[ \t]+", b"\t", lines)
