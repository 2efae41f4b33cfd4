"""A machine for each suite, booted once, with the package that was built from this source installed in it."""

import pytest

from tests.packaging import build, trees
from tests.packaging.machine import booted


@pytest.fixture(scope="session", params=trees.SUITES)
def suite(request):
    """The name of a release of Debian; skips where no machine of it can be booted."""
    if missing := trees.missing():
        pytest.skip(f"NOT RUN, no package was built, installed or booted: {missing}")
    return request.param


@pytest.fixture(scope="session")
def deb(suite):
    """The .deb for the suite."""
    return build.package(suite, "deb")


@pytest.fixture(scope="session")
def bare(suite, tmp_path_factory):
    """A machine without dbguard."""
    with booted(trees.tree(suite, trees.MACHINE), suite, tmp_path_factory.mktemp(suite)) as machine:
        yield machine


@pytest.fixture(scope="session")
def machine(bare, deb):
    """A machine with dbguard, running."""
    bare.install(deb)
    bare.until_active()
    return bare
