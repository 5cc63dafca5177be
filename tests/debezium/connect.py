"""Kafka Connect with Debezium's connector for PostgreSQL, as one process on loopback."""

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.platform.dev import java
from app.platform.dev.java import Jar, cache_folder, kafka_jars
from app.platform.dev.process import LOOPBACK, ServerProcess, clean_environment, free_port

_JARS = Path(__file__).with_name("jars.txt")

_SETTINGS = """\
bootstrap.servers={bootstrap}
key.converter=org.apache.kafka.connect.converters.ByteArrayConverter
value.converter=org.apache.kafka.connect.converters.ByteArrayConverter
offset.storage.file.filename={folder}/offsets
offset.flush.interval.ms=1000
listeners=http://{host}:{port}
config.providers=env
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
plugin.discovery=service_load
topic.creation.enable=false
"""


class Connect:
    """A standalone worker. Settings of its connectors may name variables of `environment`."""

    def __init__(self, folder: Path, bootstrap: str, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._environment = environment
        self._port = free_port()
        self.process = ServerProcess("Kafka Connect", folder, str(folder))

    def start(self, logging: Path) -> None:
        jars = all_jars()
        settings = self._folder / "connect.properties"
        values = {"folder": self._folder, "bootstrap": self._bootstrap}
        settings.write_text(_SETTINGS.format(host=LOOPBACK, port=self._port, **values))
        command = [java.java(), *java.JVM_FLAGS, f"-Dlog4j2.configurationFile={logging}"]
        command += ["-cp", java.class_path(jars), "org.apache.kafka.connect.cli.ConnectStandalone"]
        self.process.spawn([*command, str(settings)], {**clean_environment(), **self._environment})
        self.process.wait_ready(self._answers, 90)

    def _answers(self) -> bool:
        try:
            self.call("GET", "/connectors")
        except OSError:
            return False
        return True

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call Connect's REST interface. Raises OSError, also for an error status."""
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self._port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode())
            raise


def all_jars() -> list[Path]:
    """Return Kafka's jars, and those of Connect, Debezium and Kafka's tools."""
    rows = (line.split() for line in _JARS.read_text().splitlines())
    wanted = [Jar(coordinate, int(size), sha256) for coordinate, size, sha256 in rows]
    return [*kafka_jars(), *kafka_jars(cache_folder() / "debezium", wanted)]


def produce(bootstrap: str, topic: str, lines: str) -> None:
    """Send `lines`, each with headers, key and value, by Kafka's console producer."""
    command = [java.java(), *java.JVM_FLAGS, "-cp", java.class_path(all_jars())]
    command += ["org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", bootstrap]
    command += ["--topic", topic]
    for name in ("parse.headers=true", "parse.key=true", "null.marker=NULL"):
        command += ["--reader-property", name]
    subprocess.run(command, input=lines, text=True, check=True, timeout=60)


class Relay:
    """A process of `app relay`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment, "LISTEN_PORT": str(free_port())}

    def __enter__(self) -> None:
        self._child = subprocess.Popen([".venv/bin/app", "relay"], env=self._environment)

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        assert self._child.wait(60) == 0
