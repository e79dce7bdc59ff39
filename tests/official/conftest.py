"""Assertions in the comparison module are shown like those of tests."""

import pytest

pytest.register_assert_rewrite("tests.official.compare")
