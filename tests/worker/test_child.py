"""What a half gives up before it opens anything."""

import os
import subprocess
import sys

import pytest

BECOME_ROOT = """
import os, sys
from dbguardd.worker.child import prepare
prepare(os.getppid())
try:
    os.setuid(0)
except PermissionError:
    print("stayed", os.getuid())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hand out a capability in the first place")
def test_a_half_that_inherits_the_power_to_become_others_cannot_use_it(program):
    powers = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+setuid", "--ambient-caps=+setuid"]
    argv = [program("setpriv"), *powers, sys.executable, "-c", BECOME_ROOT]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
    assert (done.stdout, done.returncode) == ("stayed 65534\n", 0), done.stderr


def test_a_half_whose_parent_is_gone_ends_at_once():
    argv = [sys.executable, "-c", "from dbguardd.worker.child import prepare; prepare(1); print('lived')"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 1)


KEEPS = """
import ctypes, os, resource
from dbguardd.worker.child import prepare
prepare(os.getppid())
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print(open("/proc/self/oom_score_adj").read().strip(), len(os.listdir("/proc/self/fd")) > 0)
"""


def test_a_half_keeps_to_itself():
    """No core dump, not even into a pipe; nobody else may look in, but it still sees itself."""
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=False)
    assert done.stdout == "(0, 0) 0\n500 True\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_half_of_another_user_keeps_to_itself(program):
    argv = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", KEEPS]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout == "(0, 0) 0\n500 True\n", done.stderr


def test_a_half_is_what_goes_first_when_memory_runs_out():
    code = (
        "import os; from dbguardd.worker.child import prepare; prepare(os.getppid());"
        "print(open('/proc/self/oom_score_adj').read().strip())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("500\n", 0), done.stderr
