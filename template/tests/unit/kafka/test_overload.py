from hypothesis import given
from hypothesis import strategies as st

from app.kafka.retry import Breaker
from app.kafka.subscription import OverloadPolicy

ERROR = ValueError("broken")
POLICY = OverloadPolicy(window=4, threshold=0.5, probe_initial=1, probe_maximum=8)


def opened() -> Breaker:
    breaker = Breaker(POLICY)
    for _ in range(POLICY.window):
        breaker.failed(ERROR)
    assert breaker.is_open
    return breaker


def test_a_few_failures_do_not_open_it() -> None:
    breaker = Breaker(POLICY)

    assert [breaker.failed(ERROR) for _ in range(POLICY.window - 1)] == [False] * 3
    assert not breaker.is_open


def test_it_opens_when_the_threshold_is_reached() -> None:
    breaker = Breaker(POLICY)
    breaker.succeeded(2)

    assert not breaker.failed(ERROR)
    assert breaker.failed(ERROR)
    assert breaker.is_open
    assert breaker.share_failed == 0.5


def test_successes_push_old_failures_out_of_the_window() -> None:
    breaker = Breaker(POLICY)
    for _ in range(3):
        breaker.failed(ERROR)
    breaker.succeeded(1_000_000)

    assert breaker.share_failed == 0


def test_only_the_failure_that_opens_it_says_so() -> None:
    assert not opened().failed(ERROR)


def test_the_first_success_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()

    assert breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.failed(ERROR)


def test_a_success_while_it_is_closed_closes_nothing() -> None:
    assert not Breaker(POLICY).succeeded()


def test_it_tells_the_last_error() -> None:
    assert opened().last_error == "ValueError: broken"


def test_probes_come_ever_later_up_to_the_maximum() -> None:
    breaker = opened()

    assert [breaker.probe_wait() for _ in range(6)] == [1, 2, 4, 8, 8, 8]


def test_probes_begin_anew_when_it_opens_again() -> None:
    breaker = opened()
    breaker.probe_wait()
    breaker.probe_wait()
    breaker.succeeded()
    for _ in range(POLICY.window):
        breaker.failed(ERROR)

    assert breaker.probe_wait() == 1


def test_thousands_of_probes_do_not_overflow() -> None:
    breaker = opened()

    assert max(breaker.probe_wait() for _ in range(3000)) == 8


@given(
    st.integers(1, 30),
    st.floats(0.01, 1),
    st.lists(st.one_of(st.none(), st.integers(1, 50)), max_size=80),
)
def test_it_is_open_exactly_from_a_full_failing_window_to_the_next_success(
    window: int, threshold: float, outcomes: list[int | None]
) -> None:
    breaker = Breaker(OverloadPolicy(window=window, threshold=threshold))
    history: list[bool] = []  # what happened since it last closed; True is a failure
    is_open = False
    for successes in outcomes:
        if successes is None:
            history.append(True)
            last = history[-window:]
            is_open = is_open or (len(last) == window and sum(last) / window >= threshold)
            breaker.failed(ERROR)
        else:
            history = [] if is_open else history + [False] * successes
            is_open = False
            breaker.succeeded(successes)
        assert breaker.is_open == is_open
