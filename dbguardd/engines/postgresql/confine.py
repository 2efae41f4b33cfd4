"""Starts a throw-away server so that it ends when we do, and confines it.

`python -I -S confine.py PARENT_PID SIGNAL KIND COUNT PLACE... PROGRAM ARGUMENT...`; KIND is `server` or `recovery`, and
COUNT is the number of places.

A throw-away server may read hostile data: a function in a check constraint, a library that a superuser once loaded. It
runs as the user who owns the guarded server and may do everything there without a password (peer authentication). So it
may not connect to anything, local or remote; start a program (COPY ... TO PROGRAM), except that a `recovery` has its
own restore_command; access another process; or change permissions, owner or times of a file. Where the kernel supports
it (landlock(7)), it may only write below a PLACE, and send no signals to other processes. The kernel enforces this
(seccomp(2)), and nothing that runs later can undo it. The deny list covers everything that SQL can do. Native code,
which only a superuser of the server can load, is hampered by it. This file runs by itself, with the standard library
only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2
_MOST_BYTES = 4 << 30  # memory of one process: a value may have 1 GiB, and exists several times while it is read

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/filter.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock, the same on every machine
_WRITES = 0x1FF2  # write, remove and create anything
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # since ABI version 2 and 3
_NO_SIGNALS = 1 << 1  # since ABI version 6

_ALLOW, _REFUSE, _DONE, _KILL = 0x7FFF0000, 0x00050000 | 13, 0x00050000, 0x80000000  # 13: EACCES
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machines: the index in the tables of system call numbers, and the kernel's constant."""
_PARTLY = {"execve": (59, 221), "socket": (41, 198), "sendto": (44, 206), "prlimit64": (302, 261)}
"""System calls that are allowed in part, with their number on each machine."""
_UNDONE = {"chmod": (90, 0), "fchmodat": (268, 53), "fchmodat2": (452, 452)}
"""System calls that report success but do nothing: a server sets the permissions that its socket already has."""
_REFUSED = {
    # connections, and messages sent without one
    **{"connect": (42, 203), "socketpair": (53, 199), "sendmsg": (46, 211), "sendmmsg": (307, 269)},
    **{"io_uring_setup": (425, 425)},  # can connect by itself
    # other processes
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "process_madvise": (440, 440)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "perf_event_open": (298, 241)},
    **{"setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122)},
    **{"sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # file attributes that landlock(7) does not cover
    **{"fchmod": (91, 52), "chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54)},
    **{"utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466)},
    # the kernel
    **{"unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "execveat": (322, 281), "userfaultfd": (323, 282)},
}
"""System calls that are always refused; 0 where a machine does not have one."""


def main() -> None:
    """Become the program that the command line names."""
    parent, number, kind, first = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 5 + int(sys.argv[4])
    places, words = sys.argv[5:first], [os.fsencode(word) for word in sys.argv[first:]]
    libc = ctypes.CDLL(None, use_errno=True)
    os.setsid()  # it is ended by its own signal, cleanly, and not with our process group
    libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(what, signal.SIG_DFL)
    path = ctypes.create_string_buffer(words[0])
    vector = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    keep_to(libc, places)
    confine(libc, None if kind == "recovery" else ctypes.addressof(path))
    libc.execv(path, vector)
    sys.exit(f"{sys.argv[first]}: {os.strerror(ctypes.get_errno())}")


def landlock() -> int:
    """Return the version of landlock in this kernel; 0 if it has none, or we may not use it."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1)))


def keep_to(libc: ctypes.CDLL, places: list[str]) -> None:
    """From now on allow writing only below these places, and signals to no other process, where the kernel can."""
    version = landlock()
    if not version:
        return
    rights = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    told = struct.pack("=QQQ", rights, 0, _NO_SIGNALS if version >= 6 else 0)[: 24 if version >= 6 else 8]
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.create_string_buffer(told), len(told), 0)
    for path, allowed in (*((place, rights) for place in places), ("/dev/null", rights & (1 << 1 | _TRUNCATE))):
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if libc.syscall(_ADD_RULE, ruleset, 1, ctypes.create_string_buffer(struct.pack("=Qi", allowed, file)), 0) != 0:
            sys.exit(f"a throw-away server cannot be kept to {places}: {os.strerror(ctypes.get_errno())}")
        os.close(file)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        sys.exit(f"a throw-away server cannot be kept to {places}: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)


def confine(libc: ctypes.CDLL, program: int | None) -> None:
    """Install the filter. With `program`, the address of a path, execve is allowed only for that path."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        sys.exit(f"a throw-away server cannot be confined on {machine}")
    code = b"".join(struct.pack("=HBBI", *step) for step in steps(machine, program))
    held = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(filter_), 0, 0) != 0:
        sys.exit(f"a throw-away server cannot be confined: {os.strerror(ctypes.get_errno())}")


def steps(machine: str, program: int | None) -> list[tuple[int, int, int, int]]:
    """Return the seccomp program: (operation, jump if true, jump if false, operand)."""
    place, architecture = _ARCHITECTURES[machine]
    some = {name: numbers[place] for name, numbers in _PARTLY.items()}
    made = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for calls, answer in ((_REFUSED, _REFUSE), (_UNDONE, _DONE)):
        for number in (numbers[place] for numbers in calls.values() if numbers[place]):
            made += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    made += _only(some["socket"], [(0, ~0, 1), (1, 0xF, 1)])  # local stream sockets, which send nothing unconnected
    made += _only(some["sendto"], [(4, ~0, 0)])  # only on a connection
    made += _only(some["prlimit64"], [(0, ~0, 0)])  # not for another process
    if program is not None:
        made += _only(some["execve"], [(0, ~0, program)])
    return [*made, (_RETURN, 0, 0, _ALLOW)]


def _only(number: int, wanted: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Return steps that allow a call only with these arguments (place, mask, value); its number is loaded."""
    checks: list[tuple[int, int, int, int]] = []
    for place, mask, value in wanted:
        for half in (0, 1):
            part = value >> 32 * half & 0xFFFFFFFF
            seen = mask >> 32 * half & 0xFFFFFFFF
            checks.append((_LOAD, 0, 0, _ARGUMENTS + 8 * place + 4 * half))
            checks.append((_AND, 0, 0, seen))
            checks.append((_JUMP_EQUAL, 1, 0, part))
            checks.append((_RETURN, 0, 0, _REFUSE))
    checks.append((_RETURN, 0, 0, _ALLOW))
    return [(_JUMP_EQUAL, 0, len(checks), number), *checks]


if __name__ == "__main__":
    main()
