from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.cqrs.states import newest


@dataclass(frozen=True)
class Seen:
    id: int
    version: int


seen = st.builds(Seen, st.integers(1, 5), st.integers(1, 5))


@given(st.lists(seen))
def test_the_newest_state_of_each_thing_is_left_by_id(states: list[Seen]) -> None:
    left = newest(states)
    assert [state.id for state in left] == sorted({state.id for state in states})
    for state in left:
        assert state.version == max(other.version for other in states if other.id == state.id)


@given(st.lists(seen), st.randoms(use_true_random=False))
def test_the_order_in_which_states_come_is_of_no_matter(states: list[Seen], random: object) -> None:
    assert newest(states) == newest(sorted(states, key=lambda state: -state.version))
