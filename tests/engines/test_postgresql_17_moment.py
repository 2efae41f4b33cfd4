"""The tests of test_postgresql_moment.py, with PostgreSQL 17."""

import pytest
from test_postgresql_moment import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("postgresql_17")
