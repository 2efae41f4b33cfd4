"""The recovery sheet: what somebody with a pencil, a keyboard and no dbguard needs."""

import base64
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dbguardd.keys import AgeRecipient, Secret, new_identity, qr_svg, qr_text, recovery_sheet


@pytest.fixture
def identity() -> tuple[Secret, str]:
    return new_identity()


def sheet_of(identity: tuple[Secret, str], **more: str) -> str:
    return recovery_sheet(
        *identity,
        host="db1.example.org",
        made_at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        repositories={"directory:/srv/backups": "0123456789abcdef" * 2, "directory:/mnt/usb": "f" * 32},
        **more,
    )


def test_it_fits_on_a_page_and_says_what_it_is_for(identity: tuple[Secret, str]) -> None:
    lines = sheet_of(identity).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 66
    text = "\n".join(lines)
    for fact in (
        "db1.example.org",
        "2026-03-01 12:30 UTC",
        identity[1],
        "directory:/mnt/usb",
        "f" * 32,
        "age --decrypt",
    ):
        assert fact in text
    assert "open-all.py --now" in sheet_of(identity, recover="python3 open-all.py --now")


def test_it_says_how_to_know_the_right_program_and_the_right_backups(identity: tuple[Secret, str]) -> None:
    lines = sheet_of(identity, mark="0123-4567-89ab-cdef-0123", reader="e" * 64).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 66
    assert any(line.endswith("mark 0123-4567-89ab-cdef-0123") for line in lines)
    assert f"     {'e' * 64}" in lines
    assert "sha256sum" not in sheet_of(identity)
    text = "\n".join(lines)
    assert text.index("sha256sum") < text.index("recover.py --identity")  # before it is run
    assert "dbguardctl reload; dbguardctl key recover\n" in text
    assert [line.split()[0] for line in lines if line.startswith(("  storage ", "  repository "))] == [
        "storage", "repository", "storage", "repository",
    ]  # fmt: skip


def test_what_is_typed_from_it_opens(identity: tuple[Secret, str]) -> None:
    groups = re.search(r"AGE-SECRET-KEY-1\n( {4}[A-Z0-9 ]+\n)+", sheet_of(identity))
    assert groups is not None
    assert max(len(group) for group in groups[0].split()[1:]) == 4
    assert AgeRecipient.from_identity(Secret(groups[0].lower().encode())).label == identity[1]


def test_its_shell_lines_find_the_wrap(identity: tuple[Secret, str], tmp_path: Path) -> None:
    """Runs step 4 with a stand-in for age, because age need not be installed where the tests run."""
    wrapped = AgeRecipient(identity[1]).wrap(bytes(32), b"repository")
    (tmp_path / "keys").mkdir()
    for number, (kind, data) in enumerate((("machine", b"not this"), ("age", wrapped))):
        body = {"kind": kind, "label": "x", "offline": kind == "age", "repo_id": "00", "wrapped": _text(data)}
        for style, separators in enumerate(((",", ":"), (", ", ": "))):
            (tmp_path / "keys" / f"{number}{style}").write_text(json.dumps(body, separators=separators))
    (tmp_path / "identity.txt").write_bytes(identity[0].reveal())
    program = tmp_path / "age"
    program.write_text(f"""#!{sys.executable}
import sys, pyrage
assert sys.argv[1:3] == ["--decrypt", "-i"], sys.argv
key = pyrage.x25519.Identity.from_str(open(sys.argv[3]).read())
sys.stdout.buffer.write(pyrage.decrypt(sys.stdin.buffer.read(), [key]))
""")
    program.chmod(0o700)
    lines = re.search(r"for key in .*?done", sheet_of(identity), re.DOTALL)
    assert lines is not None
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh", "-euc", lines[0]], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"context": b"repository".hex(), "secret": bytes(32).hex()}
    ] * 2


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_the_codes_hold_the_identity(identity: tuple[Secret, str]) -> None:
    import segno

    expected = segno.make_qr(identity[0].reveal().decode(), error="m")
    lines = qr_text(identity[0]).split("\n")
    modules = [[bool(module) for module in row] for row in expected.matrix_iter(border=4)]
    rows = [[char in dark for char in line] for line in lines for dark in ("▀█", "▄█")]
    assert rows[: len(modules)] == modules
    assert {len(line) for line in lines} == {41}
    svg = qr_svg(identity[0])
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "script" not in svg
    assert "<?xml" not in svg


def test_start_up_stays_lean() -> None:
    heavy = ["pyrage", "segno", "pydantic", "aiohttp", "structlog", "rich", "asyncio"]
    script = f"import sys, dbguardd.storage, dbguardd.keys; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
