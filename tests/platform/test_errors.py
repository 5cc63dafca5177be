import pytest

from app.platform.dev.errors import DevelopmentDependencyMissing, development


def test_missing_development_dependency_says_what_installs_it() -> None:
    with pytest.raises(DevelopmentDependencyMissing, match=r"'a-package' .*`uv sync`"):
        development("no_such_module", "a-package")
