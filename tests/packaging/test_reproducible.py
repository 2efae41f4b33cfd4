"""Two builds of the same sources give the same bytes, wherever and whenever they are made."""

import hashlib

import pytest

from tests.packaging import build, trees

SUITE = "bookworm"
ELSEWHERE = """
mkdir -p /srv/other/place && cp -r /source/[a-zA-Z]* /srv/other/place/ && cd /srv/other/place
find . -exec touch -h -d '2031-02-03 04:05:06' {} + && umask 027
"""


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_two_builds_are_the_same_bytes(kind, tmp_path):
    if missing := trees.missing():
        pytest.skip(f"NOT RUN, no package was built: {missing}")
    first = build.package(SUITE, kind)
    out = tmp_path / "out"
    build_it = f"{ELSEWHERE}TZ=Asia/Tokyo packaging/build-{kind} . /wheels /out"
    done = build.in_build_tree(SUITE, build.wheels(SUITE), out, "sh", "-ec", build_it)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (second,) = out.glob(f"*.{kind}")
    assert second.name == first.name
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    assert digests[0] == digests[1], (first, second)
