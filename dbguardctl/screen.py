"""The one place that writes for people: lines and tables, plain or with rich, never obeying what they contain."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from dbguardctl.words import safe

if TYPE_CHECKING:
    from rich.console import Console

STYLES: Mapping[str, str] = {
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
    "strong": "bold",
    "try": "cyan",
    "": "",
}
"""What a style is on a terminal with colours."""

MARKS: Mapping[str, tuple[str, str]] = {
    "good": ("\N{BLACK CIRCLE}", "ok"),
    "warn": ("\N{BLACK UP-POINTING TRIANGLE}", "WARN"),
    "bad": ("\N{HEAVY MULTIPLICATION X}", "FAIL"),
    "dim": ("\N{WHITE CIRCLE}", "-"),
}
"""The mark of each style, with and without UTF-8."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text and how it looks."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: cells side by side, as they are. Line() is an empty one."""

    cells: Sequence[Cell | str] = ()
    indent: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names; columns in `right` are numbers. Without `columns` there is no head."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    right: frozenset[int] = frozenset()
    indent: int = 0


Block = Line | Table


def text(*cells: Cell | str, indent: int = 0) -> Line:
    """Return a line of cells."""
    return Line(cells, indent)


def paragraph(words: str, indent: int = 0, style: str = "") -> list[Block]:
    """Return one line for each line of `words`."""
    return [Line([Cell(line, style)], indent) for line in words.splitlines()]


def speaks_utf8(environ: Mapping[str, str], coerced: bool) -> bool:
    """True if the locale of the user is UTF-8; `coerced`: Python itself took UTF-8 in a C locale."""
    ctype = environ.get("LC_CTYPE", "")
    if coerced and ctype == "C.UTF-8":
        ctype = ""
    name = environ.get("LC_ALL") or ctype or environ.get("LANG") or ""
    return "utf-8" in name.lower() or "utf8" in name.lower()


class Screen:
    """Writes blocks to a stream.

    With `rich` (a terminal) tables fit the width and may have colours; without it, lines are never cut or folded, so
    that grep and awk can read them.
    """

    def __init__(self, stream: TextIO, *, rich: bool, colour: bool, utf8: bool) -> None:
        self.stream = stream
        self.rich = rich
        self.colour = colour
        self.utf8 = utf8
        self._console: Console | None = None

    def mark(self, style: str) -> Cell:
        """Return the mark of a style."""
        return Cell(MARKS[style][0 if self.utf8 else 1], style)

    def show(self, blocks: Iterable[Block]) -> None:
        """Write blocks."""
        for block in blocks:
            if isinstance(block, Line):
                self._line(block)
            elif self.rich:
                self._rich_table(block)
            else:
                self._plain_table(block)
        self.stream.flush()

    def _encode(self, cell: Cell | str) -> tuple[str, str]:
        words, style = (cell, "") if isinstance(cell, str) else (cell.text, cell.style)
        words = safe(words)
        if not self.utf8:
            words = words.replace("\N{MIDDLE DOT}", "|").encode("ascii", "backslashreplace").decode("ascii")
        return words, STYLES[style]

    def _line(self, line: Line) -> None:
        cells = [self._encode(cell) for cell in line.cells]
        if not self.colour:
            self.stream.write((" " * line.indent + "".join(words for words, _ in cells)).rstrip() + "\n")
            return
        from rich.text import Text  # noqa: PLC0415 - rich costs 30 ms and only a terminal needs it

        self.console().print(Text.assemble(" " * line.indent, *cells), soft_wrap=True)

    def console(self) -> Console:
        """Return the rich console of the stream."""
        from rich.console import Console  # noqa: PLC0415

        if self._console is None:
            self._console = Console(
                file=self.stream, highlight=False, markup=False, emoji=False, no_color=not self.colour,
                force_terminal=True if self.colour else None, legacy_windows=False,
            )  # fmt: skip
        return self._console

    def _rich_table(self, table: Table) -> None:
        from rich.padding import Padding  # noqa: PLC0415
        from rich.table import Table as RichTable  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        grid = RichTable(box=None, padding=(0, 2, 0, 0), show_header=any(table.columns), header_style="dim")
        width = len(table.columns) or max((len(row) for row in table.rows), default=0)
        for number in range(width):
            name = table.columns[number] if table.columns else ""
            grid.add_column(Text(name), justify="right" if number in table.right else "left", overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(words, style) for words, style in map(self._encode, row)))
        self.console().print(Padding(grid, (0, 0, 0, table.indent), expand=False) if table.indent else grid)

    def _plain_table(self, table: Table) -> None:
        rows = [[words for words, _ in map(self._encode, row)] for row in table.rows]
        if any(table.columns):
            rows.insert(0, list(table.columns))
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)] if rows else []
        for row in rows:
            cells = (
                f"{' ' * (width - _width(words))}{words}"
                if number in table.right
                else f"{words}{' ' * (width - _width(words))}"
                for number, (words, width) in enumerate(zip(row, widths, strict=True))
            )
            self.stream.write((" " * table.indent + "  ".join(cells)).rstrip() + "\n")


def _width(words: str) -> int:
    if words.isascii():
        return len(words)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in words
    )
