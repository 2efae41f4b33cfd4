"""The recovery sheet: what a person prints and keeps off this machine."""

from __future__ import annotations

import io
from datetime import datetime


def sheet_text(key: str, host: str, identity: str, recipient: str, now: datetime) -> str:
    """Return the sheet as plain text of at most 78 columns."""
    return f"""dbguard recovery sheet
======================

host       {host}
key        {key}
made       {now:%Y-%m-%d %H:%M} UTC
public     {recipient}

Whoever has the line below can read every backup that is sealed for it, also
when {host} is lost. Print this sheet and keep it where {host} is not. Nobody
can show it again: dbguard did not keep it.

{identity}

To prove that this sheet works, type it in:

  dbguardctl key recovery-test {key}

To restore on a new machine: man dbguardd, section RUN, with the storage and
this line as the key.
"""


def qr_svg(identity: str) -> str:
    """Return the secret as a QR code in SVG, medium error correction."""
    import segno  # noqa: PLC0415 - once in a year

    out = io.BytesIO()
    segno.make(identity, error="m").save(out, kind="svg", scale=4, border=4, xmldecl=False)
    return out.getvalue().decode()
