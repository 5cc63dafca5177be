"""Overload: when most messages fail, the fault is not in the messages. Stop, and probe."""

from collections import deque

from app.kafka.subscription import OverloadPolicy


class Breaker:
    """Opens when most of the last messages failed for good; closes at the first success after."""

    def __init__(self, policy: OverloadPolicy) -> None:
        self._policy = policy
        self._failures: deque[bool] = deque(maxlen=policy.window)
        self._probes = 0
        self.last_error = ""
        self.is_open = False

    def succeeded(self, messages: int = 1) -> bool:
        """Count messages whose effects are committed; True when that closed the breaker."""
        if self.is_open:
            self.is_open = False
            self._failures.clear()
            return True
        self._failures.extend([False] * min(messages, self._policy.window))
        return False

    def failed(self, error: BaseException) -> bool:
        """Count a message that is to be given up; True when that opened the breaker."""
        self.last_error = f"{type(error).__name__}: {error}"
        self._failures.append(True)
        full = len(self._failures) == self._policy.window
        if self.is_open or not full or self.share_failed < self._policy.threshold:
            return False
        self.is_open = True
        self._probes = 0
        return True

    @property
    def share_failed(self) -> float:
        return sum(self._failures) / len(self._failures) if self._failures else 0.0

    def probe_wait(self) -> float:
        """Seconds until the next probe; each is twice as far away as the one before."""
        wait: float = self._policy.probe_initial * 2 ** min(self._probes, 32)
        self._probes += 1
        return min(wait, self._policy.probe_maximum)
