"""Write the archive of Kafka's loaded classes, with which brokers start sooner."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.platform.dev import java
from app.platform.dev.errors import DevelopmentServerError, StartCancelled
from app.platform.dev.java import kafka_jars
from app.platform.dev.kafka import KafkaCluster

logger = logging.getLogger(__name__)

_WRITE_SECONDS = 120.0


@contextmanager
def train_in_background(folder: Path) -> Iterator[None]:
    """`train` in the background for the length of the block, and cancel it at the end."""
    stopping = threading.Event()
    thread = threading.Thread(
        target=_train_quietly, args=(folder, stopping.is_set), name="kafka-training"
    )
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _train_quietly(folder: Path, cancelled: Callable[[], bool]) -> None:
    try:
        train(folder, cancelled)
    except StartCancelled:
        return
    except DevelopmentServerError as error:
        # Only speed is lost, and the next run tries again.
        logger.warning("archive of Kafka's classes not written: %s", error)


def train(folder: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Write the archive unless it exists, by a broker whose data is in `folder`.

    Raises DevelopmentServerError.
    """
    if folder.exists():  # left by a killed process, perhaps with its broker
        KafkaCluster(folder).discard()
    archive = java.archive_path(kafka_jars(cancelled=cancelled))
    if archive.exists() or not os.access(archive.parent, os.W_OK):
        return
    written = folder / "classes.aot"
    # One processor: the developer needs the others.
    flags = [f"-XX:AOTCacheOutput={written}", "-XX:ActiveProcessorCount=1"]
    cluster = KafkaCluster(folder, jvm_flags=flags)
    try:
        cluster.start(cancelled=cancelled)
        cluster.stop(timeout=_WRITE_SECONDS, cancelled=cancelled)
        if written.exists():
            _install(written, archive)
    finally:
        cluster.discard()


def _install(written: Path, archive: Path) -> None:
    """Move the archive, perhaps from another file system, to its place in the cache."""
    incoming = archive.with_name(f"{archive.name}.{os.getpid()}")
    shutil.move(written, incoming)
    incoming.replace(archive)
