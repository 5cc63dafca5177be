"""An archive of Kafka's loaded classes, so that brokers start sooner."""

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
def training(folder: Path) -> Iterator[None]:
    """`train` in the background for as long as the block lasts; what is not done then is not done."""
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
        # Nothing is lost but some speed, and the next run tries again.
        logger.warning("no archive of Kafka's classes: %s", error)


def train(folder: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Write the archive, unless it is there. `folder` is for the data of the broker that does it.

    Raises DevelopmentServerError.
    """
    if folder.exists():  # a killed process left it, maybe with its broker
        KafkaCluster(folder).discard()
    archive = java.archive(kafka_jars(cancelled=cancelled))
    if archive.exists():
        return
    written = folder / "classes.aot"
    # One processor, because the other is somebody's who works.
    flags = [f"-XX:AOTCacheOutput={written}", "-XX:ActiveProcessorCount=1"]
    cluster = KafkaCluster(folder, jvm_flags=flags)
    try:
        cluster.start(cancelled=cancelled)
        cluster.stop(timeout=_WRITE_SECONDS, cancelled=cancelled)
        if written.exists():
            _take(written, archive)
    finally:
        cluster.discard()


def _take(written: Path, archive: Path) -> None:
    """Move the archive, perhaps from another file system, to where it is looked for."""
    incoming = archive.with_name(f"{archive.name}.{os.getpid()}")
    shutil.move(written, incoming)
    incoming.replace(archive)
