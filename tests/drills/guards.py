"""What each drill is about: a line without which it must fail.

`nox -s drills -- --without NAME` takes the line out of the rendered copy and runs its drill, which
then has to fail; `--without all` does so with each. The template itself is never touched.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONSUMER = "app/kafka/consumer.py"
PROCESSING = "app/kafka/processing.py"


@dataclass(frozen=True)
class Guard:
    """A piece of the service, what is put in its place, and the drill that notices."""

    name: str
    file: str
    old: str
    new: str
    drill: str


GUARDS = [
    Guard(
        "inbox",
        PROCESSING,
        "return await claim(uow.session, self._name, ids)",
        "return await claim(uow.session, self._name, ids) | set(ids)",
        "test_worker_killed_ten_times",
    ),
    Guard(
        "commit-after-effects",
        CONSUMER,
        "        await self._processor.process(batch, progress)\n",
        "        for part in batch.values():\n"
        "            for record in part:\n"
        "                progress.done(record)\n"
        "        await self._commit(client, progress)\n"
        "        await self._processor.process(batch, progress)\n",
        "test_worker_killed_ten_times",
    ),
    Guard(
        "drain-on-revoke",
        CONSUMER,
        "        self.status.assigned = False\n        await self._drain()\n",
        "        self.status.assigned = False\n",
        "test_workers_that_join_and_leave",
    ),
    Guard(
        "inbox-in-the-transaction",
        PROCESSING,
        "            new = await self._claim(uow, ids)\n",
        "            async with self._units.begin() as own:\n"
        "                new = await self._claim(own, ids)\n",
        "test_workers_killed_and_frozen",
    ),
    Guard(
        "outages-are-no-failures",
        PROCESSING,
        "return isinstance(error, BrokerUnavailable | InboxUnavailable) or is_unavailable(error)",
        "return isinstance(error, BrokerUnavailable)",
        "test_database_that_stops",
    ),
    Guard(
        "lost-connections-are-no-failures",
        "app/database.py",
        "return any(_says_unavailable(cause) for cause in _causes(error))",
        "return False",
        "test_database_that_drops_connections",
    ),
    Guard(
        "keep-alive",
        CONSUMER,
        "                    await self._keep_alive(client, progress)\n",
        "                    pass\n",
        "test_slow_database",
    ),
    Guard(
        "confirmed-before-commit",
        PROCESSING,
        "        await self._patiently(lambda: self._producer.send(message), _is_unsent)\n",
        "        try:\n"
        "            await self._producer.send(message)\n"
        "        except SendError:\n"
        "            pass\n",
        "test_dead_letters_wait_for_their_topic",
    ),
    Guard(
        "clients-are-replaced",
        CONSUMER,
        "                await self._pause(wait)\n                wait = min(wait * 2, longest)\n",
        "                return\n",
        "test_restart_of_the_only_broker",
    ),
    Guard(
        "poison-is-given-up",
        PROCESSING,
        "                    await self._give_up_undecodable(entry)\n",
        "                    pass\n",
        "test_poison",
    ),
    Guard(
        "origin-headers",
        "app/kafka/retry.py",
        "names.ORIGIN_OFFSET: str(record.offset),",
        'names.ORIGIN_OFFSET: "0",',
        "test_poison",
    ),
    Guard(
        "replay-is-recognised",
        PROCESSING,
        "return await claim(uow.session, self._name, ids)",
        "return await claim(uow.session, self._name, ids) | set(ids)",
        "test_poison",
    ),
    Guard(
        "never-early",
        CONSUMER,
        "        if due is not None and due > now:\n            return index\n",
        "",
        "test_failures_are_retried",
    ),
    Guard(
        "one-attempt-is-not-enough",
        PROCESSING,
        "if self._is_permanent(error) or attempt == in_place:",
        "if True:",
        "test_failures_are_retried",
    ),
    Guard(
        "due-at",
        "app/kafka/retry.py",
        "    history[names.DUE_AT] = (now + delay).isoformat()\n",
        "",
        "test_delays_are_kept",
    ),
    Guard(
        "drain-on-stop",
        "app/kafka/consumer.py",
        "    await asyncio.gather(*(consumer.stop() for consumer in consumers))\n",
        "    for task in tasks:\n        task.cancel()\n",
        "test_stopped_worker",
    ),
    Guard(
        "drain-deadline",
        CONSUMER,
        "timeout=self._settings.kafka_drain_timeout_seconds)",
        "timeout=None)",
        "test_handlers_slower_than_the_deadline",
    ),
    Guard(
        "close-deadline",
        CONSUMER,
        "timeout=self._settings.kafka_drain_timeout_seconds)",
        "timeout=None)",
        "test_worker_stops_in_time_while_a_server_hangs and database",
    ),
    Guard(
        "reason-of-refusal",
        "app/kafka/settings.py",
        "if not isinstance(error, kafka_errors.KafkaConnectionError):",
        "if True:",
        "test_wrong_password",
    ),
    Guard(
        "overload",
        PROCESSING,
        "        return self._breaker.is_open or self._open_breaker(error)\n",
        "        return False\n",
        "test_overloaded_subscription",
    ),
    Guard(
        "append-with-its-message",
        "app/event_sourcing/orders.py",
        "            appended = await self._store.append(order.id, new, expected_version)\n",
        "            async with AsyncSession(self._session.bind) as own, own.begin():\n"
        "                store = EventStore(own, ORDERS)\n"
        "                appended = await store.append(order.id, new, expected_version)\n",
        "test_streams_and_topics_are_whole",
    ),
]


class GuardNotFound(Exception):
    """The line that a guard names is not in the service, or not once: mend guards.py."""


def must_fail(
    guard: Guard, service: Path, drill: Callable[[str], subprocess.CompletedProcess[str]]
) -> str:
    """Run the guard's drill without the guard; what it said. Empty if it passed all the same."""
    file = service / guard.file
    whole = file.read_text()
    if whole.count(guard.old) != 1:
        raise GuardNotFound(f"{guard.name}: {guard.file} does not have exactly one {guard.old!r}")
    file.write_text(whole.replace(guard.old, guard.new))
    try:
        ran = drill(guard.drill)
    finally:
        file.write_text(whole)
    said = [line for line in ran.stdout.splitlines() if line.startswith("E  ")]
    if ran.returncode == 1 and " failed" in ran.stdout:
        return said[0].removeprefix("E").strip() if said else "it failed"
    return ""
