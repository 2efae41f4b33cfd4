"""dbguardd: the entry point, and the only module that wires the parts together."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import shlex
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from dbguardd import __version__
from dbguardd.errors import GuardError, NoSpace, Usage
from dbguardd.places import POLICY, SOCKET
from dbguardd.verbs import BY_HAND, STANDBY

STATE = "/var/lib/dbguard"


def main() -> int:
    """Run the daemon, check a policy, or run one job by hand."""
    os.umask(os.umask(0o022) | 0o022)  # no other user may replace files in the directories that this process makes
    try:
        options = _parser().parse_args()
        if options.command == "run":
            return _run_by_hand(options)
        if options.check_config:
            return _check(options)
        return _serve(options)
    except GuardError as error:
        from dbguardd.worker.by_hand import complain  # noqa: PLC0415 each way in loads only what it needs

        asked = sys.argv[1:]
        program = ["dbguardd", *asked[: asked.index("run")], "run"] if "run" in asked else ["dbguardd"]
        complain(error, program, as_json="--json" in asked)
        return error.exit_status


class Parser(argparse.ArgumentParser):
    """An argument parser that reports mistakes in the same form as all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise Usage."""
        late = message.startswith("unrecognized") and any(f" {own}" in message for own in ("--policy", "--state"))
        detail = "--policy and --state come before the word run." if late else ""
        raise Usage(f"{self.prog}: {message}", detail=detail, hints=[f"{self.prog} --help"])


def _parser() -> argparse.ArgumentParser:
    parser = Parser("dbguardd", description="Keeps databases restorable, and proves it.")
    parser.add_argument("--version", action="version", version=f"dbguardd {__version__}")
    parser.add_argument("--policy", type=_path, default=Path(POLICY), help=f"the policy file ({POLICY})")
    parser.add_argument("--state", type=_path, default=Path(STATE), help=f"where state and backups go ({STATE})")
    parser.add_argument("--socket", type=_path, default=Path(SOCKET), help=f"where to listen ({SOCKET})")
    parser.add_argument("--json-log", action="store_true", help="write the log as JSON lines when not under systemd")
    parser.add_argument("--check-config", action="store_true", help="check the policy, say what is wrong, and end")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="run one job here and now, without a daemon: after a disaster, in scripts")
    run.add_argument("--json", action="store_true", help="print what happens as JSON lines")
    verbs = run.add_subparsers(dest="verb", required=True)
    for name, request in BY_HAND.items():
        verb = verbs.add_parser(name, help=request.__doc__, description=request.__doc__)
        for field in fields(request):
            if field.default is MISSING:
                what = field.metadata.get("help", f"name of the {field.name}, as in the policy")
                verb.add_argument(field.name, type=_given, help=what)
            else:
                kind: dict[str, Any] = {"action": "store_true"} if field.default is False else {"type": _given}
                if field.metadata.get("several"):
                    kind |= {"action": _Joined}
                if type(field.default) is int:
                    kind = {"type": int, "default": field.default}
                flag = "database" if field.name == "in_database" else field.name.replace("_", "-")
                verb.add_argument(f"--{flag}", dest=field.name, help=field.metadata["help"], **kind)
    return parser


class _Joined(argparse.Action):
    """Keeps all values of an option that is given several times, as one list, and not only the last."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        said = getattr(namespace, self.dest)
        setattr(namespace, self.dest, f"{said},{values}" if said else values)


def _given(text: str) -> str:
    """Refuse an empty text: an option that a script fills from an empty variable must not count as absent."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; leave the option out if that is meant")
    return text


def _path(text: str) -> Path:
    return Path(_given(text))


def _check(options: argparse.Namespace) -> int:
    from dbguardd.policy import Host, load  # noqa: PLC0415
    from dbguardd.worker.rights import go_on_as_owner  # noqa: PLC0415

    state = options.state.absolute()
    go_on_as_owner(state, options.policy)
    loaded = load(options.policy, os.geteuid(), Host(state=str(state)))
    databases, files = len(loaded.policy.names()), len(loaded.files)
    many = f"{databases} database{'s' * (databases != 1)} in {files} file{'s' * (files != 1)}"
    print(f"{options.policy}: ok, {many}")
    for warning in loaded.warnings:
        print(warning.to_text(), file=sys.stderr)
    return 3 if loaded.warnings else 0


def _run_by_hand(options: argparse.Namespace) -> int:
    from dbguardd.daemon import state_directory  # noqa: PLC0415
    from dbguardd.policy import Host, load  # noqa: PLC0415
    from dbguardd.worker import by_hand  # noqa: PLC0415
    from dbguardd.worker.child import forbid_inspection  # noqa: PLC0415
    from dbguardd.worker.rights import go_on_as_owner  # noqa: PLC0415

    state = options.state.absolute()
    go_on_as_owner(state, options.policy)
    forbid_inspection()
    policy = load(options.policy.absolute(), os.geteuid(), Host(state=str(state))).policy
    given = {field.name: getattr(options, field.name) for field in fields(BY_HAND[options.verb])}
    request: dict[str, Any] = {name: "" if value is None else value for name, value in given.items()}
    if request.get("to"):
        request["to"] = str(Path(request["to"]).absolute())
    alone = state_directory.furnished if options.verb in STANDBY else state_directory.owned
    with alone(state):  # a running daemon uses the same staging and storage; a standby uses neither
        return by_hand.run(policy, str(state), options.verb, request, as_json=options.json)


def _serve(options: argparse.Namespace) -> int:
    gc.disable()  # nothing that is loaded is garbage
    from dbguardd.api.server import serve  # noqa: PLC0415
    from dbguardd.daemon import log, supervisor  # noqa: PLC0415
    from dbguardd.daemon.clock import system_clock  # noqa: PLC0415
    from dbguardd.sentences import plain  # noqa: PLC0415
    from dbguardd.worker.child import forbid_inspection  # noqa: PLC0415
    from dbguardd.worker.look import look  # noqa: PLC0415
    from dbguardd.worker.staging import sweep  # noqa: PLC0415
    from dbguardd.worker.start import run_worker  # noqa: PLC0415

    forbid_inspection()
    faulthandler.enable()  # when the watchdog sends SIGABRT, the journal shows where the daemon hung
    host, machine_id = supervisor.this_host()
    socket = options.socket.absolute()
    logger = log.setup(json_lines=options.json_log)
    setup = supervisor.Setup(
        policy=options.policy.absolute(),
        state=options.state.absolute(),
        run_worker=run_worker,
        serve=lambda service: serve(service, socket, mode=0o666),  # any user may connect: roles are per request
        log=logger,
        host=host,
        machine_id=machine_id,
        clock=system_clock(),
        look=look,
        sweep=sweep,
    )
    gc.freeze()
    gc.enable()
    try:
        asyncio.run(supervisor.run(setup))
    except GuardError as error:
        if isinstance(error, NoSpace):  # without a daemon nobody can ask for a prune over the socket
            error.hints = (
                shlex.join(["df", "-h", str(setup.state)]),
                "dbguardd run restore NAME --to PLACE  # on another disk: it needs no daemon, and no room there",
                "dbguardd run expire NAME  # what the policy no longer keeps, then",
                "dbguardd run sweep STORAGE  # makes room of what expired longer ago than its grace",
            )
        if not log.to_journal():
            raise
        logger.error("daemon.failed", **plain({"problem": error.problem()}))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
