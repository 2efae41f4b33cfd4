"""Two builds of the same sources give the same bytes, wherever and whenever they are made.

`make test` compares each file of two packages, in test_rpm.py.
"""

import hashlib

import pytest

from tests.packaging import build, trees

SUITE = "bookworm"


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_two_builds_are_the_same_bytes(kind, tmp_path):
    if missing := trees.missing():
        pytest.skip(f"NOT RUN, no package was built: {missing}")
    first = build.package(SUITE, kind)
    out = tmp_path / "out"
    done = build.in_build_tree(SUITE, build.wheels(SUITE), out, "sh", "-ec", build.elsewhere(kind))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (second,) = out.glob(f"*.{kind}")
    assert second.name == first.name
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    assert digests[0] == digests[1], (first, second)
