"""Makes man/dbguard-errors.7 from the table of outcomes: python -m tests.surface.errors_page > man/dbguard-errors.7."""

from __future__ import annotations

import re
import textwrap

from dbguardd.errors import EXIT_STATUSES, OUTCOMES, GuardError

GROUPS = {
    "0": "Asking",
    "1": "Policy",
    "2": "Databases",
    "3": "Storage",
    "4": "Repository",
    "5": "Keys",
    "6": "Proof and restore",
    "7": "Guards",
    "8": "Jobs",
    "9": "The daemon's own books",
}

HEAD = """\
.\\" Made from dbguardd/errors.py by tests/surface/errors_page.py. Edit that.
.Dd September 12, 2026
.Dt DBGUARD-ERRORS 7
.Os
.Sh NAME
.Nm dbguard-errors
.Nd what the error codes of dbguard mean, and what to do
.Sh DESCRIPTION
Every error that
.Xr dbguardd 8
and
.Xr dbguardctl 1
report has a stable code, shown in messages, in JSON and in the
journal.
Each entry below says what happened, what that means for the data, and what to
do.
.Ql dbguardctl explain CODE
prints the same without a daemon.
An error marked
.Em passing
may go away when the same is tried again; the daemon does so by itself for
scheduled work.
.Sh CODES
"""

TAIL = """\
.Sh SEE ALSO
.Xr dbguardctl 1 ,
.Xr dbguard.toml 5 ,
.Xr dbguardd 8
"""


def page() -> str:
    """Return the manual page."""
    lines = [HEAD]
    group = ""
    for code, kind in sorted(OUTCOMES.items()):
        if code[4] != group:
            lines.append(f"{'.El' + chr(10) if group else ''}.Ss {GROUPS[code[4]]}\n.Bl -tag -width Ds\n")
            group = code[4]
        lines.append(_entry(code, kind))
    lines += [".El\n.Sh EXIT STATUS\n", ".Bl -tag -width 130\n"]
    lines += [
        f".It {status}\n{_text(f'{meaning[:1].upper()}{meaning[1:]}.')}" for status, meaning in EXIT_STATUSES.items()
    ]
    return "".join([*lines, ".El\n", TAIL])


def _entry(code: str, kind: type[GuardError]) -> str:
    doc = " ".join((kind.__doc__ or "").replace("`", "").split())
    passing = ",\n.Em passing" if kind.transient else ""
    return (
        f".It Sy {code} {_on_a_macro_line(kind.title)}\n{_text(doc)}{_text(kind.meaning)}{_text(kind.advice)}"
        f"Exit status {kind.exit_status}, HTTP status {kind.http_status}{passing or '.'}\n"
    ).replace("passing\n", "passing .\n")


def _on_a_macro_line(words: str) -> str:
    """Return words that mdoc shows as they are: No and An, for example, are macros in such a place."""
    return re.sub(r"\b[A-Z][a-z]{1,2}\b", r"\\&\g<0>", _escaped(words))


def _text(words: str) -> str:
    """Return prose, one sentence a line, lines of at most 78 characters, nothing taken for a macro."""
    lines = []
    for sentence in words.replace(". ", ".\n").splitlines():
        lines += textwrap.wrap(_escaped(sentence), 78, break_long_words=False, break_on_hyphens=False)
    return "".join(f"\\&{line}\n" if line.startswith((".", "'")) else f"{line}\n" for line in lines)


def _escaped(words: str) -> str:
    return words.replace("\\", "\\e")


if __name__ == "__main__":
    print(page(), end="")
