"""Whether a physical backup can be made of a server: tried as who asks, with a slot that holds the log for a moment."""

from __future__ import annotations

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.connect import Address, connected, place_of, rows
from dbguardd.engines.postgresql.physical.cluster import look
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.mode import BackupMode
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import GuardError, SourceDenied

BY_PAGES = "backups by pages"
"""The name of the finding."""

_MAY = b"SELECT rolsuper FROM pg_roles WHERE rolname = current_user"


def by_pages(address: Address) -> Finding:
    """Say whether the cluster can be backed up by its pages; if not, it can be dumped."""
    try:
        return Finding(BY_PAGES, "ok", f"the files of the cluster are in {_directory(address)}")
    except GuardError as error:
        return Finding(BY_PAGES, "not configured", f"{error.message}. {error.detail}".strip())


def _directory(address: Address) -> str:
    with connected(address) as connection:
        about = place_of(address)
        ((superuser,),) = rows(connection, _MAY)
        if not superuser:
            raise SourceDenied(
                f"{about}: who asks is no superuser",
                detail="A physical backup asks and reads as the server's own user does.",
            )
        cluster = look(connection, about)
        directory = DataDirectory(cluster.directory, {}, cluster.version_directory)
        try:
            BackupMode(connection, cluster.log).hold(directory)  # its slot goes with the connection
        finally:
            directory.close()
        for program in ("pg_waldump", "postgres", "pg_checksums"):
            find_tools(program, cluster.major)
        return cluster.directory
