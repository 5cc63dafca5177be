import pytest

from app.platform.dev.errors import DevelopmentDependencyMissing, import_development


def test_missing_development_dependency_says_what_installs_it() -> None:
    with pytest.raises(DevelopmentDependencyMissing, match=r"'a-package' .*`uv sync`"):
        import_development("no_such_module", "a-package")
