"""Starts one program of PostgreSQL so that it ends with us, and a throw-away server so that it reaches nothing.

`python -I -S confine.py PARENT_PID SIGNAL KIND COUNT PLACE... PROGRAM ARGUMENT...`; KIND is `tool`, `server` or
`recovery`, and there are COUNT places.

What a throw-away server reads may be hostile: a function in a check constraint, a library that a superuser once loaded.
It runs as the user who owns the guarded server, who may do everything there without a password (peer authentication).
So a server may connect to nothing, local or remote; may start no program (COPY ... TO PROGRAM), but for a `recovery`,
which has its own restore_command; may look into no other process, and change no rights, owner or times of a file; and,
where the kernel can see to it (landlock(7)), may write nothing but below a PLACE and send no signal to others. It is
the kernel that refuses (seccomp(2)), and nothing that runs later can take that back. A list of what is refused holds
all that SQL can do. Native code, which only a superuser of the server can load, is hindered by it. Standard library
only: the file is run by itself.
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
_MOST_BYTES = 4 << 30  # of memory for one process: a value may have 1 GiB, and is there more than once when it is read

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/filter.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock, on every machine
_WRITES = 0x1FF2  # write, remove and make anything
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # from version 2 and 3 on
_NO_SIGNALS = 1 << 1  # from version 6 on

_ALLOW, _REFUSE, _DONE, _KILL = 0x7FFF0000, 0x00050000 | 13, 0x00050000, 0x80000000  # 13: EACCES
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data
_X32 = 0x40000000

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machines, with their place in the tables of numbers, and what the kernel calls them."""
_PARTLY = {"execve": (59, 221), "socket": (41, 198), "sendto": (44, 206), "prlimit64": (302, 261)}
"""Calls of which only some are allowed; each by its number on each machine."""
_UNDONE = {"chmod": (90, 0), "fchmodat": (268, 53), "fchmodat2": (452, 452)}
"""Calls that are said to have been done, and are not: a server gives its socket the rights that it was made with."""
_REFUSED = {
    # of connections, and of what is sent without one
    **{"connect": (42, 203), "socketpair": (53, 199), "sendmsg": (46, 211), "sendmmsg": (307, 269)},
    **{"io_uring_setup": (425, 425)},  # which can connect by itself
    # of other processes
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "process_madvise": (440, 440)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "perf_event_open": (298, 241)},
    **{"setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122)},
    **{"sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # of files that landlock(7) does not know of
    **{"fchmod": (91, 52), "chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54)},
    **{"utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466)},
    # of the kernel
    **{"unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "execveat": (322, 281), "userfaultfd": (323, 282)},
}
"""Calls that are always refused; 0 where a machine does not have one."""


def main() -> None:
    """Become the program that the command line names."""
    parent, number, kind, first = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 5 + int(sys.argv[4])
    places, words = sys.argv[5:first], [os.fsencode(word) for word in sys.argv[first:]]
    libc = ctypes.CDLL(None, use_errno=True)
    if kind != "tool":
        os.setsid()  # it ends by its own signal, orderly, and not with our group
    libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(what, signal.SIG_DFL)
    path = ctypes.create_string_buffer(words[0])
    vector = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    if kind != "tool":
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        keep_to(libc, places)
        confine(libc, None if kind == "recovery" else ctypes.addressof(path))
    libc.execv(path, vector)
    sys.exit(f"{sys.argv[first]}: {os.strerror(ctypes.get_errno())}")


def landlock() -> int:
    """Return which version of this the kernel has; 0 if it has none, or we may not use it."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1)))


def keep_to(libc: ctypes.CDLL, places: list[str]) -> None:
    """Write only below these from now on, and send no signal to anybody else; as far as this kernel has that."""
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
    """Have the kernel refuse from now on; of programs only the one whose path is at the address `program` may start."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        sys.exit(f"a throw-away server cannot be confined on {machine}")
    code = b"".join(struct.pack("=HBBI", *step) for step in steps(machine, program))
    held = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(filter_), 0, 0) != 0:
        sys.exit(f"a throw-away server cannot be confined: {os.strerror(ctypes.get_errno())}")


def steps(machine: str, program: int | None) -> list[tuple[int, int, int, int]]:
    """Return the filter, as the kernel's small machine runs it: (operation, jump if true, jump if false, operand)."""
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
    made += _only(some["socket"], [(0, ~0, 1), (1, 0xF, 1)])  # a local stream: nothing goes over it unconnected
    made += _only(some["sendto"], [(4, ~0, 0)])  # to nobody else than who has connected
    made += _only(some["prlimit64"], [(0, ~0, 0)])  # of no other process
    if program is not None:
        made += _only(some["execve"], [(0, ~0, program)])
    return [*made, (_RETURN, 0, 0, _ALLOW)]


def _only(number: int, wanted: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Return the steps that refuse a call unless its arguments (place, mask, value) are these; the number is loaded."""
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
