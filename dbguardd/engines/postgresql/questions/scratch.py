"""Restores a cluster for questions: one server recovers it and answers none, a second one answers and is confined.

For a dump, one database is restored instead (see dumped). Questions run users' functions (in a view, or in an index
when a query is planned), so no question runs as a superuser: the throw-away server gets a role that may read everything
and do nothing else, and the session is that role's from start to end. The superuser only creates it, in template1.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dbguardd.engines.base import Progress, ScratchRestore
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import UNHAMPERED, Address, Connection, connect, connected, rows, shown
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.prove import recover, settings_for
from dbguardd.engines.postgresql.physical.queries import READS, make_reader
from dbguardd.engines.postgresql.physical.rebuild import Restored, fill
from dbguardd.engines.postgresql.questions.dumped import Dumped, fetch
from dbguardd.engines.postgresql.server import Server, room, throwaway
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.engines.postgresql.typed import running
from dbguardd.errors import NoSpace, Unsupported, Usage, of_file
from dbguardd.flow import Tree
from dbguardd.frozen import frozen

_DATABASES = b"SELECT datname, quote_ident(datname) FROM pg_database WHERE datallowconn ORDER BY 1"
_SETTINGS = f"-c role=none {UNHAMPERED} -c session_preload_libraries= -c default_transaction_read_only=off"
_SPARE_BYTES = 64 << 20
_SHOWN, _TOLD = 20, 5


@frozen
class ScratchServer:
    """A cluster of the past that answers: its server, and the unprivileged role for questions.

    With a `dump`, only the rows exist that have been loaded.
    """

    server: Server
    role: str
    database: str
    live: Address  # the address of the live server, if the policy has one
    superuser: str  # a superuser on the live server
    dump: Dumped | None = None

    def address(self) -> Address:
        """Return its address and role, for libpq."""
        return {**self.server.address(self.role), "dbname": self.database, "options": READS}

    def lacking(self) -> str:
        """Return which definitions could not be restored on this host; "" if all could."""
        lacking = () if self.dump is None else self.dump.lacking
        return f"Not all of the dump could be made on this host: {'; '.join(lacking[:_TOLD])}" if lacking else ""

    def running(self, owner: str = "") -> str:
        """Return the beginning of the command that runs an extracted text on the live server, as its owner."""
        return running(self.live, self.superuser, owner, self.database)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Connect for the length of a block."""
        connection = connect(self.address(), about="throw-away server")
        try:
            yield connection
        finally:
            connection.close()


class ScratchRestores:
    """Clusters of the past that this job has restored. `live` is the address in the policy's url, if there is one."""

    def __init__(self, live: Address) -> None:
        self._live, self._named = live, live.get("dbname", "")
        self._restored: dict[Path, Restored] = {}
        self._dumps: dict[Path, Dumped] = {}

    def restore(self, tree: Tree, place: Path, database: str, progress: Progress) -> ScratchRestore:
        """See engines.base.ServerQuestions."""
        if tree.facts.get("method", "dump") == "dump":
            place.mkdir(mode=0o700)
            with written(place):
                choose = partial(self._meant, database, about="")
                self._dumps[place] = fetch(tree, place, choose, progress)
            return ScratchRestore(place, database)
        facts = ClusterFacts.read(tree.facts)
        if not facts.superuser:
            raise Unsupported("no superuser of the cluster may log in, so no role to read with can be created")
        tools = find_tools("postgres", facts.major, need="a backup is read by a server of its version")
        if not (database or self._named):
            self._meant("", sorted(facts.snapshots), about="")  # do not restore what cannot be asked
        place.mkdir(mode=0o700)
        _cluster(place).mkdir(mode=0o700)
        with written(place):
            restored = fill(tree, _cluster(place), _cluster(place), progress)
        recover(_cluster(place), tools, restored, lambda: progress("recover", 0, None))
        self._restored[place] = restored
        return ScratchRestore(place, database)

    @contextmanager
    def serve(self, revived: ScratchRestore, about: str, alive: Alive) -> Iterator[ScratchServer]:
        """Run the server of a restored cluster for the length of a block; then delete everything."""
        bounded = {"temp_file_limit": f"{max(1, room(revived.directory) >> 11)}kB", "lo_compat_privileges": "on"}
        try:
            if (dump := self._dumps.pop(revived.directory, None)) is not None:
                user = dump.superuser
                told = {**bounded, "track_functions": "pl"}  # see ready
                with throwaway(dump.cluster, dump.tools, alive, user=user, settings=told) as server:
                    ours = pwd.getpwuid(os.geteuid()).pw_name  # a dump does not name a superuser
                    yield ScratchServer(server, dump.reader, dump.part.database.name, self._live, ours, dump)
                return
            facts, cluster = self._restored.pop(revived.directory).facts, _cluster(revived.directory)
            tools, settings = find_tools("postgres", facts.major), {**settings_for(facts), **bounded}
            with throwaway(cluster, tools, alive, user=facts.superuser, settings=settings) as server:
                yield self._let_in(server, revived.database, facts.superuser, about)
        finally:
            shutil.rmtree(revived.directory, ignore_errors=True)

    def _let_in(self, server: Server, database: str, user: str, about: str) -> ScratchServer:
        """Create the role for questions. Raises Usage if it is unclear which database is meant."""
        address = {**server.address(), "options": _SETTINGS}
        with connected(address, "template1", about="throw-away server") as superuser:
            quoted = {os.fsdecode(bytes(name)): bytes(said) for name, said in rows(superuser, _DATABASES)}
            named = self._meant(database, list(quoted), about=about)
            role = make_reader(superuser, quoted[named])
            for statement in (
                b"ALTER DATABASE " + quoted[named] + b" CONNECTION LIMIT -1",
                b"ALTER DATABASE " + quoted[named] + b" RESET session_preload_libraries",
                b"ALTER ROLE ALL RESET session_preload_libraries",  # the new role may not set it, and must not get it
            ):
                superuser.execute(statement, prepare=False)
        return ScratchServer(server, role, named, self._live, user)

    def _meant(self, database: str, names: Sequence[str], *, about: str) -> str:
        """Return the database to ask: the named one, else the one in the url, else the only user database.

        Raises Usage.
        """
        wanted = database or self._named
        others = [name for name in names if name not in ("postgres", "template0", "template1")]
        if not wanted and len(others) < 2:
            return others[0] if others else "postgres"
        if wanted in names:
            return wanted
        listed = ", ".join([shown(os.fsencode(name)) for name in names[:_SHOWN]] + ["…"] * (len(names) > _SHOWN))
        what = f"there is no database {wanted} in the backup" if wanted else "which database? the backup has several"
        raise Usage(
            f"{about}: {what}".removeprefix(": "),
            detail=f"Its databases: {listed}.",
            hints=[shlex.join(["--database", (others or names)[0]]) + "  # or another of these"],
        )


@contextmanager
def written(place: Path) -> Iterator[None]:
    """Translate an operating system error while writing below `place`."""
    try:
        yield
    except OSError as error:
        raise of_file(f"{place}: what is asked cannot be brought back there", error) from error


def check_room(place: Path) -> None:
    """Raise NoSpace before a sort or a function fills the disk."""
    if room(place) < _SPARE_BYTES:
        raise NoSpace(
            f"{place}: the question has used up the room that is free there", facts={"free_bytes": room(place)}
        )


def _cluster(place: Path) -> Path:
    return place / "cluster"  # in a directory of its own: a server may write beside it
