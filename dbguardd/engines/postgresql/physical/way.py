"""How the files of a cluster come here: they are read where they lie, or sent by their server. It is decided here."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dbguardd.engines.postgresql.connect import Connection, rows
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.engines.postgresql.physical.copy import Copy, Tell
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.mode import BackupMode, Watch, watched
from dbguardd.engines.postgresql.physical.received import Source, receiving
from dbguardd.engines.postgresql.physical.slot import check_bound, check_own
from dbguardd.errors import SourceChanged, SourceDenied, SourceInvalid, SourceMissing
from dbguardd.flow import Facts, Sink

READ, SENT = "files", "replication"
"""What the fact `read_by` of a backup says."""

_SUPERUSER = b"SELECT rolsuper FROM pg_roles WHERE rolname = current_user"


@dataclass(frozen=True, slots=True)
class Way:
    """The data directory, if it can be read here; None, and why not, of a cluster that its server has to send."""

    cluster: Cluster
    directory: DataDirectory | None
    why: str = ""

    @property
    def said(self) -> str:
        """What a person is told of it."""
        if self.directory is not None:
            return f"the files of the cluster are in {self.directory.path}"
        return f"the server sends the files of the cluster, all of them each time: {self.why}"

    def facts(self) -> Facts:
        """Return what a restore has to know: which places on this host are those of the cluster, if it is on it."""
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
        """See that the log is held, and takes the last room of no server, for the length of a block; see watched().

        Of a server elsewhere nobody here sees how much room it has: there it has to bound what a slot holds.
        """
        if self.directory is None:
            check_bound(source.keeper, None, None, source.about)
        watch = Watch(session, source.slot, self.directory, source.about, source.patience)
        with watched(source.sessions, watch) as check:
            yield check

    @contextmanager
    def copying(self, source: Source, sink: Sink, begun: float, tell: Tell) -> Iterator[Copy]:
        """Make a copy by this way, for the length of a block."""
        if self.directory is None:
            with receiving(source, sink, begun, tell) as made:
                yield made
        else:
            yield Copy(self.directory, self.cluster, sink, begun, tell)


@contextmanager
def way_to(keeper: Connection, cluster: Cluster, slot: str) -> Iterator[Way]:
    """Open the data directory, for the length of a block, if it is here, may be read, and is that of the server.

    By the slot that the server has made it is seen whose it is. Only a superuser has what it takes beside the files.
    """
    places = {oid: where for oid, (_name, where) in cluster.tablespaces.items()}
    with ExitStack() as stack:
        why = ""
        try:
            directory = DataDirectory(cluster.directory, places, cluster.version_directory)
            stack.callback(directory.close)
            check_own(directory, slot, cluster.log.system)
            if rows(keeper, _SUPERUSER) != [(True,)]:
                why = f"{directory.path} could be read, but who asks is no superuser"
        except (SourceChanged, SourceDenied, SourceInvalid, SourceMissing) as error:
            why = f"{error.message} ({error.detail})" if isinstance(error, SourceDenied) else error.message
        yield Way(cluster, None if why else directory, why)


@contextmanager
def way_of(keeper: Connection, cluster: Cluster) -> Iterator[Way]:
    """Open the data directory as way_to(), of a server that holds nothing for us afterwards."""
    mode = BackupMode(keeper, cluster.log)
    with way_to(keeper, cluster, mode.hold()) as way:
        mode.let_go()
        yield way


def _owner(directory: DataDirectory) -> str | None:
    """Return the user whom the data directory belongs to; None if this host does not know him."""
    try:
        return pwd.getpwuid(os.fstat(directory.file).st_uid).pw_name
    except KeyError:
        return None
