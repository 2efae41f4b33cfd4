"""Golden texts: what a screen looked like when a person last approved of it.

GOLDEN=write makes them anew; look at the difference before you keep it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

from dbguardctl.screen import Block, Screen

DIRECTORY = Path(__file__).parent / "golden"


class Terminal(io.StringIO):
    """A stream that is a terminal 80 columns wide."""

    def isatty(self) -> bool:
        return True


def screen(*, terminal: bool = False, colour: bool = False, utf8: bool = True) -> Screen:
    """A screen whose text can be read back."""
    stream = Terminal() if terminal else io.StringIO()
    return Screen(stream, terminal=terminal, colour=colour, utf8=utf8)


def drawn(blocks: Iterable[Block], on: Screen | None = None) -> str:
    """The text of blocks."""
    on = on or screen()
    on.show(blocks)
    text = on.stream
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def approve(name: str, text: str) -> None:
    """Compare a text with the golden one of that name."""
    path = DIRECTORY / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no golden text {name}; make it with GOLDEN=write"
    assert text == path.read_text(encoding="utf-8")
