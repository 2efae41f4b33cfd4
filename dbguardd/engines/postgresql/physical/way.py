"""Decides how the files of a cluster are copied: read where they lie, or sent by the server."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from dbguardd.engines.postgresql.connect import Connection, rows
from dbguardd.engines.postgresql.physical import configuration, summaries
from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.engines.postgresql.physical.copy import Copy, Tell
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.mode import BackupMode, Watch, watched
from dbguardd.engines.postgresql.physical.received import Source, receiving
from dbguardd.engines.postgresql.physical.slot import check_bound, check_own
from dbguardd.errors import SourceChanged, SourceDenied, SourceInvalid, SourceMissing
from dbguardd.facts import SENT
from dbguardd.flow import Facts, Sink
from dbguardd.frozen import frozen

READ = "files"
"""The value of the fact `read_by` of a backup."""

_SUPERUSER = b"SELECT rolsuper FROM pg_roles WHERE rolname = current_user"


@frozen
class Way:
    """The data directory if it can be read here; otherwise None with the reason, and the server sends the files."""

    cluster: Cluster
    directory: DataDirectory | None
    why: str = ""

    @property
    def said(self) -> str:
        """What a person is told about it."""
        if self.directory is not None:
            return f"the files of the cluster are in {self.directory.path}"
        return f"the server sends the files of the cluster, all of them each time: {self.why}"

    def facts(self) -> Facts:
        """Return the facts that a restore needs: which places on this host belong to the cluster, if it runs here."""
        if self.directory is None:
            return {"read_by": SENT, "not_read_here": self.why, "directory": None, "service": "", "owner": None}
        service = configuration.service(self.cluster.configuration)
        return {
            "read_by": READ,
            "directory": self.cluster.directory,
            "service": service,
            "owner": _owner(self.directory),
        }

    @contextmanager
    def held(self, source: Source, session: Connection) -> Iterator[Callable[[], None]]:
        """Check that the WAL is kept and does not fill the server's disk, for the length of a block; see watched().

        The free space of a server elsewhere is unknown here: that server has to limit what a slot holds.
        """
        if self.directory is None:
            check_bound(source.keeper, None, None, source.about)
        watch = Watch(session, source.slot, self.directory, source.about, source.patience)
        with watched(source.sessions, watch) as check:
            yield check

    @contextmanager
    def copying(self, source: Source, sink: Sink, begun: float, tell: Tell) -> Iterator[Copy]:
        """Make a copy this way, for the length of a block."""
        if self.directory is None:
            with receiving(source, sink, begun, tell) as made:
                yield made
        else:
            look_up = partial(summaries.look_up, source.session, self.cluster, sink.parent)
            yield Copy(self.directory, self.cluster, sink, begun, tell, look_up=look_up)


@contextmanager
def way_to(keeper: Connection, cluster: Cluster, slot: str) -> Iterator[Way]:
    """Open the data directory, for the length of a block, if it is here, readable, and that of the server.

    The slot shows whether it is that of the server. Only a superuser may run what is needed besides the files.
    """
    places = {oid: where for oid, (_name, where) in cluster.tablespaces.items()}
    with ExitStack() as stack:
        why = ""
        try:
            directory = DataDirectory(cluster.directory, places, cluster.version_directory)
            stack.callback(directory.close)
            check_own(directory, slot, cluster.log.system)
            if rows(keeper, _SUPERUSER) != [(True,)]:
                why = f"{directory.path} could be read, but the role is no superuser"
        except (SourceChanged, SourceDenied, SourceInvalid, SourceMissing) as error:
            why = f"{error.message} ({error.detail})" if isinstance(error, SourceDenied) else error.message
        yield Way(cluster, None if why else directory, why)


@contextmanager
def way_of(keeper: Connection, cluster: Cluster) -> Iterator[Way]:
    """Open the data directory like way_to(), leaving no slot on the server."""
    mode = BackupMode(keeper, cluster.log)
    with way_to(keeper, cluster, mode.hold()) as way:
        mode.let_go()
        yield way


def _owner(directory: DataDirectory) -> str | None:
    """Return the owner of the data directory; None if this host has no such user."""
    try:
        return pwd.getpwuid(os.fstat(directory.file).st_uid).pw_name
    except KeyError:
        return None
