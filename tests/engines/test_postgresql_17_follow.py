"""The tests of test_postgresql_follow.py, with PostgreSQL 17."""

import pytest
from test_postgresql_follow import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("postgresql_17")
