"""Unit tests need no server: what they test is pure, or stands on a fake."""

import pytest
from hypothesis import settings

# A busy machine is not a fault of the code, and these tests run after every change: for a long
# search, `--hypothesis-profile=default`.
settings.register_profile("unit", deadline=None, max_examples=50)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("unit")
