import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import PreconditionRequired
from app.routers.orders import etag, get_expected_versions


@given(st.integers(1, 2**31 - 1))
def test_an_etag_that_comes_back_names_its_version(version: int) -> None:
    assert get_expected_versions(etag(version)) == frozenset({version})


def test_several_versions_may_be_expected() -> None:
    assert get_expected_versions('"1", "3" ,"x", W/"4"') == frozenset({1, 3})


def test_a_star_expects_any_version() -> None:
    assert get_expected_versions(" * ") is None


@given(st.text())
def test_other_text_expects_no_version(text: str) -> None:
    if text.strip() != "*" and '"' not in text:
        assert get_expected_versions(text) == frozenset()


def test_without_if_match_the_request_is_refused() -> None:
    with pytest.raises(PreconditionRequired, match="If-Match"):
        get_expected_versions(None)
