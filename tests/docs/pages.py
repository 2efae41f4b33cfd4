"""The manual pages and other documents as text: literal blocks, list items, options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").glob("*.[1-8]"))


def roff(name: str) -> str:
    """The source of a manual page; minus signs and quotes as they are typed."""
    return plain((ROOT / "man" / name).read_text(encoding="utf-8"))


def plain(text: str) -> str:
    for escape, character in (("\\&", ""), ("\\(dq", '"'), ("\\-", "-"), ("\\(aq", "'"), ("\\e", "\\")):
        text = text.replace(escape, character)
    return text


def section(page: str, title: str, macro: str = "Sh") -> str:
    """What stands below a heading."""
    end = r"\.Sh" if macro == "Sh" else r"\.S[hs]"
    found = re.search(rf"^\.{macro} {re.escape(title)}\n(.*?)(?=^{end} |\Z)", page, re.M | re.S)
    assert found, title
    return found[1]


def items(text: str) -> dict[str, str]:
    """The terms of a list, each with its text in one line."""
    found = re.findall(r"^\.It (?:Sy )?(\S+)\n((?:(?!\.(?:It|El)\b).*\n)*)", text, re.M)
    return {term: " ".join(body.split()) for term, body in found}


def blocks(page: str) -> list[str]:
    """The literal blocks of a page, as they are typed, and the lines that stand alone."""
    found = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", page, re.M | re.S)
    found += [f"{line}\n" for line in re.findall(r"^\.Dl (.*)", page, re.M)]
    found += [f"{line}\n" for line in re.findall(r"^\.Ql (dbguard(?:d|ctl) \S+ .*?)(?: [.,])?$", page, re.M)]
    return found


def fenced(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown document: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def commands(text: str, *programs: str) -> list[list[str]]:
    """The command lines of these programs in a block, split as a shell would, without comments and continuations."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines if line.strip()]
    split = [words[1:] if words and words[0] == "sudo" else words for words in split]
    return [words for words in split if words and words[0].rpartition("/")[2] in programs]
