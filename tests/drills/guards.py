"""Guards: for each drill, a line without which it must fail.

`nox -s drills -- --without NAME` takes the line out of the rendered copy and runs its drill, which
then has to fail; `--without all` does so with each. The template itself is never touched.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONSUMER = "app/platform/kafka/consumer.py"
DATABASE = "app/platform/database/engine.py"
FORWARDING = "app/platform/kafka/forwarding.py"
PROCESSING = "app/platform/kafka/processing.py"
REFUSALS = "app/platform/kafka/refusals.py"
RELAY = "app/platform/outbox/relay.py"
TRANSACTION = "app/platform/outbox/transaction.py"
OUTBOX, READ_SIDE, EVENT_STORE = ("outbox",), ("cqrs",), ("outbox", "event_sourcing")


@dataclass(frozen=True)
class Guard:
    """A piece of the service, what is put in its place, and the drill that notices; `modules` are
    those that the service needs to have.

    `words` is a pattern of the failure's message: a drill that fails for another reason, such as a
    time-out, confirms nothing.
    """

    name: str
    file: str
    old: str
    new: str
    drill: str
    modules: tuple[str, ...] = ()
    words: str = ""

    def verdict(self, said: str) -> tuple[bool, str]:
        """Whether `said`, the words of the drill's failure, confirms the guard; and in words."""
        if not said:
            return False, "PASSES ALL THE SAME"
        if not re.search(self.words, said):
            return False, f"FAILS WITHOUT SAYING {self.words!r}: {said}"
        return True, f"fails: {said}"


GUARDS = [
    Guard(
        "skipped-types-done",
        PROCESSING,
        "        tracker.mark_done(record)\n\n    def _decode(",
        "\n    def _decode(",
        "test_killed_worker_on_another_topic",
    ),
    Guard(
        "foreign-inbox-id",
        "app/platform/kafka/decoding.py",
        "Decoded(event, message_id(event.event_id, mask))",
        'Decoded(event, __import__("uuid").uuid4())',
        "test_killed_worker_on_another_topic",
        words=r"\d+ events applied more than once",
    ),
    Guard(
        "outbox-measured-without-relay",
        "app/platform/outbox/__init__.py",
        "({Role.API, Role.WORKER, Role.RELAY}, monitor.lifespan)",
        "({Role.RELAY}, monitor.lifespan)",
        "test_each_death_is_seen_by_the_alerts_of_the_docs",
        OUTBOX,
        words="OutboxUnknown",
    ),
    Guard(
        "lag-measured-without-worker",
        "app/platform/http/app.py",
        "    if Role.WORKER in runtime.roles:\n",
        "    if Role.RELAY not in runtime.roles:\n",
        "test_each_death_is_seen_by_the_alerts_of_the_docs",
        OUTBOX,
        words="ConsumerLagUnknown",
    ),
    Guard(
        "outbox-counters-from-the-start",
        "app/platform/kafka/metrics.py",
        "        messages_expired.labels(consumer, topic)\n",
        "",
        "test_each_death_is_seen_by_the_alerts_of_the_docs",
        OUTBOX,
    ),
    Guard(
        "read-side-measured-without-worker",
        "app/platform/projections/__init__.py",
        "({Role.API}, lag.lifespan)",
        "({Role.WORKER}, lag.lifespan)",
        "test_read_side_without_worker_and_without_api",
        READ_SIDE,
        words="ProjectionLagUnknown",
    ),
    Guard(
        "inbox",
        PROCESSING,
        "return await claim(uow.session, self._name, ids)",
        "return await claim(uow.session, self._name, ids) | set(ids)",
        "test_worker_killed_ten_times",
        words=r"\d+ events applied more than once",
    ),
    Guard(
        "commit-after-effects",
        CONSUMER,
        "        await self._processor.process(batch, tracker, began)\n",
        "        for part in batch.values():\n"
        "            for record in part:\n"
        "                tracker.mark_done(record)\n"
        "        await self._committer.commit_all(client, tracker)\n"
        "        await self._processor.process(batch, tracker, began)\n",
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
        "app/platform/database/errors.py",
        "    return categorize(error) in _TRANSIENT\n",
        "    return False\n",
        "test_database_that_drops_connections",
        words=r"an outage was counted as \d+ failures",
    ),
    Guard(
        "limits-are-no-failures",
        "app/platform/database/errors.py",
        '"55P03": ErrorCategory.LIMIT,',
        '"55P03": ErrorCategory.BUG,',
        "test_limits_of_the_server",
    ),
    Guard(
        "isolation-is-pinned",
        DATABASE,
        'isolation_level="READ COMMITTED",',
        "isolation_level=None,",
        "test_stricter_isolation",
    ),
    Guard(
        "requests-are-retried",
        "app/platform/http/boundary.py",
        "if attempt == MAX_TRANSACTION_ATTEMPTS or not is_retryable(error):",
        "if True:",
        "test_stricter_isolation",
    ),
    Guard(
        "readiness-beside-the-pool",
        DATABASE,
        "            await self.probe.check_writable()\n",
        "            async with self.engine.connect():\n                pass\n",
        "test_an_empty_pool",
        words="503 == 200",
    ),
    Guard(
        "a-standby-is-left",
        DATABASE,
        "        context.is_disconnect = context.invalidate_pool_on_disconnect = True\n",
        "        pass\n",
        "test_a_fail_over",
    ),
    Guard(
        "a-standby-is-not-ready",
        DATABASE,
        "        if standby or read_only:\n",
        "        if False:\n",
        "test_a_fail_over",
    ),
    Guard(
        "keep-alive",
        CONSUMER,
        "                    await self._keep_alive(client, tracker)\n",
        "                    pass\n",
        "test_slow_database",
    ),
    Guard(
        "confirmed-before-commit",
        FORWARDING,
        "            await self.retry_while_unavailable(\n"
        "                lambda: self._producer.send(message),\n"
        "                lambda error: _is_send_error(error) and not isinstance(error, _PERMANENT_REFUSALS),\n"
        "            )\n",
        "            try:\n"
        "                await self._producer.send(message)\n"
        "            except SendError:\n"
        "                pass\n",
        "test_dead_letters_wait_for_their_topic",
    ),
    Guard(
        "refusals-that-pass-are-waited-for",
        REFUSALS,
        "    kafka_errors.TopicAuthorizationFailedError: Fault.TOPIC,\n",
        "    kafka_errors.TopicAuthorizationFailedError: Fault.RECORD,\n",
        "test_refusals_that_pass",
        words=r"\d+ events lost",
    ),
    Guard(
        "any-size-refused-is-too-large",
        FORWARDING,
        "_PERMANENT_REFUSALS = (MessageTooLarge, MessageRejected)\n",
        "_PERMANENT_REFUSALS = (MessageTooLarge,)\n",
        "test_dead_letters_that_their_topic_takes_only_in_part",
        words="a letter of a refused size is sent again",
    ),
    Guard(
        "outbox-refusals-park-nothing",
        REFUSALS,
        "    kafka_errors.InvalidTimestampError: Fault.TOPIC,\n",
        "    kafka_errors.InvalidTimestampError: Fault.RECORD,\n",
        "test_refusals_that_pass",
        OUTBOX,
        words=r"\d+ events parked",
    ),
    Guard(
        "outbox-a-topic-waits-alone",
        "app/platform/kafka/client.py",
        "        lacks_replicas = isinstance(error, kafka_errors.NotEnoughReplicasError)\n",
        "        lacks_replicas = False\n",
        "test_a_topic_that_lacks_replicas",
        OUTBOX,
        words="which waited for a topic in trouble",
    ),
    Guard(
        "clients-are-replaced",
        CONSUMER,
        "                if not await wait_for_event(self._stopping, backoff.next()):\n"
        "                    self.status.record_progress()\n",
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
        "app/platform/kafka/retry.py",
        "names.ORIGIN_OFFSET: str(record.offset),",
        'names.ORIGIN_OFFSET: "0",',
        "test_poison",
    ),
    Guard(
        "read-committed",
        "app/platform/kafka/settings.py",
        '"isolation_level": "read_committed"',
        '"isolation_level": "read_uncommitted"',
        "test_transactional_neighbour",
    ),
    Guard(
        "markers-are-committed",
        CONSUMER,
        "                await self._committer.commit(client, skipped)\n",
        "                pass\n",
        "test_transactional_neighbour",
    ),
    Guard(
        "latest-is-for-new-groups",
        "app/platform/kafka/positions.py",
        " and await self._is_new(client)\n",
        "\n",
        "test_topic_recreated_and_grown",
    ),
    Guard(
        "metadata-is-young",
        "app/platform/kafka/settings.py",
        "METADATA_MAX_AGE_SECONDS = 10.0",
        "METADATA_MAX_AGE_SECONDS = 300.0",
        "test_topic_recreated_and_grown",
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
        "app/platform/kafka/buffer.py",
        "            if due is not None and due > now:\n                return index\n",
        "",
        "test_failures_are_retried",
    ),
    Guard(
        "one-attempt-is-not-enough",
        PROCESSING,
        "if self._reporter.is_permanent(error) or attempt == in_place:",
        "if True:",
        "test_failures_are_retried",
    ),
    Guard(
        "due-at",
        "app/platform/kafka/retry.py",
        "    history[names.DUE_AT] = (now + delay).isoformat()\n",
        "",
        "test_delays_are_kept",
    ),
    Guard(
        "drain-on-stop",
        "app/platform/kafka/consumers.py",
        "    await asyncio.gather(*(consumer.stop() for consumer in consumers))\n",
        "    for task in tasks:\n        task.cancel()\n",
        "test_stopped_worker",
        words="work in flight was thrown away",
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
        "app/platform/kafka/settings.py",
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
        "replicas",
        "app/platform/kafka/admin.py",
        "replication_factor=topic.replication_factor,\n        topic_configs",
        "replication_factor=1,\n        topic_configs",
        "test_loss_of_any_broker",
    ),
    Guard(
        "password-is-told-to-the-client",
        "app/platform/kafka/settings.py",
        '"sasl_plain_password": password.get_secret_value() if password else None',
        '"sasl_plain_password": str(password)',
        "test_scram_over_tls",
    ),
    Guard(
        "outbox-deleted-after-sending",
        RELAY,
        "                await self._send(batch)\n                await self._apply_outcomes(opened, batch)\n",
        "                opened.delete([row.id for row in rows])\n"
        "                await opened.commit()\n"
        "                await self._send(batch)\n",
        "test_relays_killed_at_random",
        OUTBOX,
    ),
    Guard(
        "outbox-one-relay-a-bucket",
        TRANSACTION,
        "WHERE bucket = ANY({buckets}) FOR UPDATE SKIP LOCKED",
        "WHERE bucket = ANY({buckets})",
        "test_relays_killed_at_random",
        OUTBOX,
    ),
    Guard(
        "outbox-in-the-transaction",
        "app/platform/outbox/publisher.py",
        "        self._entries.append("
        "_Entry(message, bucket, self._session.get_nested_transaction()))\n",
        "        from sqlalchemy.ext.asyncio import AsyncEngine\n\n"
        "        async with AsyncEngine(self._session.get_bind()).begin() as own:\n"
        "            await own.execute(_INSERT, [as_row(message, bucket)])\n",
        "test_relays_killed_at_random",
        OUTBOX,
        words="events of transactions that were rolled back",
    ),
    Guard(
        "outbox-outage-counts-nothing",
        "app/platform/outbox/batch.py",
        "        elif error.retriable:\n            self.unanswered[topic] = error\n",
        "",
        "test_events_wait_while_the_broker_is_away",
        OUTBOX,
    ),
    Guard(
        "outbox-relay-goes-on",
        RELAY,
        "            except Exception as error:  # the batch was rolled back, so nothing is lost\n"
        "                await self._wait_for_database(error, backoff)\n",
        "            except ZeroDivisionError:\n                pass\n",
        "test_connections_cut_while_sends_are_in_flight",
        OUTBOX,
    ),
    Guard(
        "outbox-frozen-is-hung-up-on",
        TRANSACTION,
        "set_config('idle_in_transaction_session_timeout', '{idle:.0f}', true)",
        "set_config('application_name', '{idle:.0f}', true)",
        "test_a_relay_frozen_beyond_its_deadline",
        OUTBOX,
    ),
    Guard(
        "outbox-drain-on-stop",
        RELAY,
        "            _, late = await asyncio.wait(senders, timeout=stop_seconds)\n",
        "            late = senders\n",
        "test_a_stopped_relay_leaves_nothing_half_done",
        OUTBOX,
    ),
    Guard(
        "outbox-written-before-the-commit",
        "app/platform/outbox/__init__.py",
        "from app.platform.outbox import monitor, publisher, relay, wakeup\n",
        "from app.platform.kafka import publisher\nfrom app.platform.outbox import monitor, relay, wakeup\n",
        "test_an_api_killed_after_its_commits",
        OUTBOX,
    ),
    Guard(
        "outbox-block",
        RELAY,
        "        if not any_parked or self._settings.outbox_on_poison is not OnPoison.BLOCK:\n",
        "        if True:\n",
        "test_a_row_too_large_for_its_topic and block",
        OUTBOX,
    ),
    Guard(
        "outbox-a-missing-topic-parks-nothing",
        "app/platform/outbox/batch.py",
        "        if isinstance(error, TopicUnavailable):\n            self.refusing.add(topic)\n",
        "        if isinstance(error, TopicUnavailable):\n"
        "            self.unsendable[row.id] = str(error)\n",
        "test_a_topic_that_is_not_there",
        OUTBOX,
        words=r"\d+ events parked",
    ),
    Guard(
        "newest-version-wins",
        "app/platform/database/upserts.py",
        "        where=new.excluded[version] > table.c[version],\n",
        "",
        "test_read_side_is_right",
        READ_SIDE,
        words="went back",
    ),
    Guard(
        "projectors-write-to-the-shadow",
        "app/platform/projections/projection.py",
        "    if await session.get(RebuildRow, projection.name) is not None:\n",
        "    if False:\n",
        "test_read_side_is_right",
        READ_SIDE,
    ),
    Guard(
        "a-sale-replaces-itself",
        "app/orders/sales.py",
        "if sale.order_id not in before or sale.version > before[sale.order_id].version",
        "if True",
        "test_read_side_is_right",
        READ_SIDE,
    ),
    Guard(
        "hidden-topics-are-asked-for-by-name",
        "app/platform/kafka/admin.py",
        "if code == _TOPIC_AUTHORIZATION_FAILED]",
        "if code == -1]",
        "test_a_topic_that_the_user_may_not_describe",
    ),
    Guard(
        "outcome-of-a-lost-commit",
        "app/platform/database/commit_outcome.py",
        "        return self._info.get(_TRANSACTION) is not None and not is_confirmed_rollback(error)\n",
        "        return False\n",
        "test_commits_whose_answer_is_lost",
    ),
    Guard(
        "outbox-a-lost-commit-is-no-success",
        "app/platform/outbox/publisher.py",
        "        return False\n",
        "        return True\n",
        "test_no_outbox_row_depends_on_the_answer",
        OUTBOX,
    ),
    Guard(
        "append-with-its-message",
        "app/platform/event_store/repository.py",
        "            appended = await self._store.append(stream_id, new, expected_version)\n",
        "            async with AsyncSession(self._session.bind) as own, own.begin():\n"
        "                store = EventStore(own, self._category)\n"
        "                appended = await store.append(stream_id, new, expected_version)\n",
        "test_streams_and_topics_are_whole",
        EVENT_STORE,
        words="appended, and lost on the way to Kafka",
    ),
    Guard(
        "console-is-read-only",
        "app/platform/console/pages.py",
        "        if not self.settings.console_actions:\n",
        "        if False:\n",
        "test_a_console_changes_nothing_unless",
        words="a read-only console acts",
    ),
    Guard(
        "console-forms-carry-a-token",
        "app/platform/http/browser.py",
        "        if not expected or not hmac.compare_digest(expected.encode(), given.encode()):\n",
        "        if False:\n",
        "test_a_console_changes_nothing_unless",
        words="a form of another site acts",
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
    if ran.returncode != 1 or " failed" not in ran.stdout:
        return ""
    # What pytest marks, or the line of an error within a group of errors.
    said = re.search(r"^(?:E  |[ |]*(?=\w+(?:Error|Failed): ))(.+)$", ran.stdout, re.MULTILINE)
    return said[1].strip() if said else "it failed"
