"""Makes the list of decisions in man/dbguard-architecture.7: python -m tests.docs.decisions."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man" / "dbguard-architecture.7"
BEGIN, END = ".Sh DECISIONS\n", ".Sh SEE ALSO\n"
HEAD = """\
Each is explained in a file of
.Pa man/decisions
whose name begins with its number, with the alternatives.
"""


def section() -> str:
    """Return the section as it should be."""
    rows = []
    for path in sorted((ROOT / "man" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f".It {path.name[:4]}\n{_line(title)}.\n")
    return f"{BEGIN}{HEAD}.Bl -tag -width 0000 -compact\n{''.join(rows)}.El\n"


def page() -> str:
    """Return the whole page with that section in its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not rest:
        before, _, after = before.partition(END)
    else:
        after = rest.partition(END)[2]
    return f"{before}{section()}{END}{after}"


def _line(title: str) -> str:
    return title.replace("\\", "\\e").replace('"', "\\(dq").replace("`", "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
