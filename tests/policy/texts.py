"""Checks a policy whose files are texts."""

from collections.abc import Mapping

from dbguardd.policy import Host, Policy
from dbguardd.policy.load import check_sources, parse
from dbguardd.policy.mistakes import Mistake


def check_text(files: Mapping[str, str], host: Host | None = None) -> tuple[Policy | None, list[Mistake]]:
    """Return the policy in texts by file name, None if it is invalid, and every mistake in them."""
    found: list[Mistake] = []
    sources = [parse(name, text.encode(), found) for name, text in files.items()]
    policy, _, found = check_sources(sources, found, host or Host())
    return policy, found
