"""The only module that writes for people: lines and tables, with control characters escaped."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from dbguardd.frozen import frozen
from dbguardd.humanize import safe

if TYPE_CHECKING:
    from rich.console import Console

STYLES: Mapping[str, tuple[str, str]] = {
    "good": ("32", "green"),
    "warn": ("33", "yellow"),
    "bad": ("1;31", "bold red"),
    "dim": ("2", "dim"),
    "strong": ("1", "bold"),
    "try": ("36", "cyan"),
}
"""The form of each style on a terminal with colours: the numbers of the escape sequence, and the style for rich."""

MARKS: Mapping[str, tuple[str, str]] = {
    "good": ("\N{BLACK CIRCLE}", "ok"),
    "warn": ("\N{BLACK UP-POINTING TRIANGLE}", "WARN"),
    "bad": ("\N{HEAVY MULTIPLICATION X}", "FAIL"),
    "dim": ("\N{WHITE CIRCLE}", "-"),
}
"""The mark of each style, with and without UTF-8."""


@frozen
class Cell:
    """A piece of text and its style."""

    text: str
    style: str = ""


@frozen
class Line:
    """One line: cells side by side. Line() is an empty one."""

    cells: Sequence[Cell | str] = ()
    indent: int = 0


@frozen
class Table:
    """Rows under column names; without `columns` there is no header.

    Columns in `right` contain numbers. Those in `fold` contain prose, which is folded if the terminal is too narrow.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    right: frozenset[int] = frozenset()
    fold: frozenset[int] = frozenset()
    indent: int = 0


Block = Line | Table
_FOLDED = 12


def text(*cells: Cell | str, indent: int = 0) -> Line:
    """Return a line of cells."""
    return Line(cells, indent)


def paragraph(words: str, indent: int = 0, style: str = "") -> list[Block]:
    """Return one line for each line of `words`."""
    return [Line([Cell(line, style)], indent) for line in words.splitlines()]


def speaks_utf8(environ: Mapping[str, str], coerced: bool) -> bool:
    """True if the locale of the user is UTF-8; `coerced`: Python itself chose UTF-8 in a C locale."""
    ctype = environ.get("LC_CTYPE", "")
    if coerced and ctype == "C.UTF-8":
        ctype = ""
    name = environ.get("LC_ALL") or ctype or environ.get("LANG") or ""
    return "utf-8" in name.lower() or "utf8" in name.lower()


class Screen:
    """Writes blocks to a stream.

    On a terminal, rich (which takes 30 ms to import) folds a table that is too wide. Elsewhere lines are never cut or
    folded, so that grep and awk can read them. `program` is how dbguardctl is called here: commands to paste begin with
    it, or with the dbguardd beside it.
    """

    def __init__(
        self, stream: TextIO, *, terminal: bool, colour: bool, utf8: bool, program: str = "dbguardctl"
    ) -> None:
        self.stream = stream
        self._program = program
        self.terminal = terminal
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
                words = "".join(self._painted(*self._encode(cell)) for cell in block.cells)
                self.stream.write((" " * block.indent + words).rstrip() + "\n")
            else:
                self._table(block)
        self.stream.flush()

    def console(self) -> Console:
        """Return the rich console of the stream."""
        from rich.console import Console  # noqa: PLC0415 - rich takes 30 ms to import and few screens need it

        if self._console is None:
            terminal = True if self.colour else None
            self._console = Console(
                file=self.stream, highlight=False, markup=False, no_color=not self.colour, force_terminal=terminal
            )
        return self._console

    def _encode(self, cell: Cell | str) -> tuple[str, str]:
        words, style = (cell, "") if isinstance(cell, str) else (cell.text, cell.style)
        words = safe(self._pasted(words) if style == "try" else words)
        if not self.utf8:
            words = words.replace("\N{MIDDLE DOT}", "|").encode("ascii", "backslashreplace").decode("ascii")
        return words, style

    def _pasted(self, words: str) -> str:
        if words.startswith("dbguardd "):
            called = shlex.split(self._program)[0]
            return (shlex.quote(f"{called[:-3]}d") if "/" in called else "dbguardd") + words.removeprefix("dbguardd")
        before, name, after = words.partition("dbguardctl ")
        if not name or before not in ("", "sudo ") or "--socket" in after:
            return words
        return f"{before}{self._program} {after}"

    def _painted(self, words: str, style: str) -> str:
        return f"\x1b[{STYLES[style][0]}m{words}\x1b[0m" if self.colour and style and words else words

    def _table(self, table: Table) -> None:
        rows = [[self._encode(cell) for cell in row] for row in table.rows]
        if any(table.columns):
            rows.insert(0, [(name, "dim") for name in table.columns])
        widths = [max(_width(words) for words, _ in column) for column in zip(*rows, strict=True)]
        if self.terminal and not self._fits(table, widths):
            narrow = [min(width, _FOLDED) if number in table.fold else width for number, width in enumerate(widths)]
            if table.fold and self._fits(table, narrow):
                self._folded(table, rows)
                return
            if any(table.columns):
                self._stacked(table, rows[1:])
                return
        for row in rows:
            cells = []
            for number, ((words, style), width) in enumerate(zip(row, widths, strict=True)):
                room, painted = " " * (width - _width(words)), self._painted(words, style)
                cells.append(room + painted if number in table.right else painted + room)
            self.stream.write((" " * table.indent + "  ".join(cells)).rstrip() + "\n")

    def _fits(self, table: Table, widths: Sequence[int]) -> bool:
        """True if columns of these widths fit the terminal."""
        return table.indent + 2 * len(widths) - 2 + sum(widths) <= self._columns()

    def _stacked(self, table: Table, rows: list[list[tuple[str, str]]]) -> None:
        """Write each row as a few lines: its name, and below it each column with the column's name."""
        first = next(number for number, name in enumerate(table.columns) if name)
        for row in rows:
            head = " ".join(self._painted(*cell) for cell in row[: first + 1])
            self.stream.write(f"{' ' * table.indent}{head}\n")
            named = zip(table.columns[first + 1 :], row[first + 1 :], strict=True)
            self._flow([(name, *cell) for name, cell in named if cell[0]], table.indent + 4)

    def _flow(self, items: Iterable[tuple[str, str, str]], indent: int) -> None:
        """Write names and values side by side, in lines that fit the terminal."""
        at = 0
        for name, words, style in items:
            width = len(name) + 1 + _width(words)
            ends = at + 3 + width > self._columns()
            lead = " " * indent if not at else f"\n{' ' * indent}" if ends else " | "
            self.stream.write(f"{lead}{self._painted(name, 'dim')} {self._painted(words, style)}")
            at = indent + width if ends or not at else at + 3 + width
        self.stream.write("\n" if at else "")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _folded(self, table: Table, rows: list[list[tuple[str, str]]]) -> None:
        from rich.padding import Padding  # noqa: PLC0415 - as above
        from rich.table import Table as RichTable  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        grid = RichTable(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
        for number in range(len(rows[0])):
            fold = number in table.fold
            grid.add_column(
                justify="right" if number in table.right else "left",
                no_wrap=not fold,
                min_width=_FOLDED if fold else None,
            )
        for row in rows:
            grid.add_row(*(Text(words, STYLES[style][1] if style and self.colour else "") for words, style in row))
        self.console().print(Padding(grid, (0, 0, 0, table.indent), expand=False))


def _width(words: str) -> int:
    if words.isascii():
        return len(words)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in words
    )
