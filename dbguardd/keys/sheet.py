"""The recovery sheet: one page to print and put away, which opens the backups after everything else is lost."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from dbguardd.keys.secret import Secret

_PREFIX = "AGE-SECRET-KEY-1"

_PROGRAM = """\
   Who can write there can change it: sha256sum recover/recover.py must say
     {reader}
"""
_MARK = """\
   They are yours only if list or key recover says mark {mark}
"""

_SHEET = """\
DBGUARD RECOVERY KEY                                          print, then delete
================================================================================
Whoever has this page can read every backup named below. Keep it where you keep
contracts: not on this machine, not beside the backups. Two copies, two places.

  host        {host}
  made        {made}
  recipient   {recipient}
{repositories}
IDENTITY: type it as one line, in capitals, without spaces

{groups}

{qr}

OPEN THE BACKUPS ON ANY MACHINE

1. Write the identity into a file:     umask 077; cat > identity.txt
   A mistyped character is noticed: the last six are a checksum.
2. Go to the directory that contains repo.json (mount the disk, copy the files).
   Where dbguard is installed, let [storage.local] of its policy name that
   directory, then:     dbguardctl reload; dbguardctl key recover
3. Without dbguard, the program that lies there lists and restores.
{program}   It needs Python 3.11 with four packages:
     python3 -m venv ~/v; . ~/v/bin/activate
     pip install blake3 cryptography pyrage zstandard
     {recover} list
     {recover} restore BACKUP NEWDIR
{mark}4. Without that program, age (age-encryption.org) opens the root key:
     for key in $(grep -l '"kind": *"age"' keys/*); do
       sed 's/.*"wrapped": *"\\([^"]*\\)".*/\\1/' $key | base64 -d |
         age --decrypt -i identity.txt; done
   It prints {{"context": repository, "secret": root key}}, both in hexadecimal.
   The manual dbguard-repository(5) says what to do with it, byte for byte.

Check once a month that this page still opens the backups:
     dbguardctl key recovery-test
"""


def recovery_sheet(
    identity: Secret,
    recipient: str,
    *,
    host: str,
    made_at: datetime,
    repositories: Mapping[str, str],
    mark: str = "",
    reader: str = "",
    recover: str = "python3 recover/recover.py --identity identity.txt .",
) -> str:
    """Return the sheet as text of at most 80 columns, with the identity in groups of four and as a QR code.

    `repositories` maps a place (a storage's url) to a repository's id; `recover` begins the commands of step 3; `mark`
    and `reader` (see Repository.marks) distinguish the repository and the program from forgeries.
    """
    pairs = [(("storage", place[:64]), ("repository", id)) for place, id in repositories.items()]
    places = [f"  {name:<12}{said}" for pair in pairs for name, said in pair]
    return _SHEET.format(
        host=host[:64],
        made=f"{made_at:%Y-%m-%d %H:%M %Z}",
        recipient=recipient,
        repositories="".join(f"{line}\n" for line in places),
        groups="\n".join(f"    {line}" for line in _groups(identity.reveal().decode("ascii"))),
        qr="\n".join(f"    {line}" for line in qr_text(identity).splitlines()),
        recover=recover,
        program=_PROGRAM.format(reader=reader) if reader else "",
        mark=_MARK.format(mark=mark) if mark else "",
    )


def qr_text(identity: Secret) -> str:
    """Return the identity as a QR code of block characters, 41 columns wide, dark on light."""
    rows = [[bool(module) for module in row] for row in _code(identity).matrix_iter(border=4)]
    rows += [[False] * len(rows[0])] * (len(rows) % 2)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join("".join(" ▄▀█"[2 * top + low] for top, low in zip(*pair, strict=True)) for pair in pairs)


def qr_svg(identity: Secret) -> str:
    """Return the identity as a QR code: an SVG element that contains a single path."""
    out = io.BytesIO()
    _code(identity).save(out, kind="svg", xmldecl=False, scale=4, light="#fff")
    return out.getvalue().decode("ascii").strip()


def _code(identity: Secret) -> Any:  # segno has no types
    import segno  # noqa: PLC0415  # only sheets need it

    return segno.make_qr(identity.reveal().decode("ascii"), error="m")


def _groups(identity: str) -> Iterator[str]:
    yield _PREFIX
    rest = identity.removeprefix(_PREFIX)
    fours = [rest[place : place + 4] for place in range(0, len(rest), 4)]
    for place in range(0, len(fours), 8):
        yield " ".join(fours[place : place + 8])
