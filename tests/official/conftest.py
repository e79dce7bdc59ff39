"""What a comparison asserts is shown as what a test asserts is."""

import pytest

pytest.register_assert_rewrite("tests.official.compare")
