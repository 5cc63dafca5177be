"""One node of an embedded Kafka cluster: its files, ports, command line and process."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.platform.dev import java
from app.platform.dev.broker_settings import node_settings
from app.platform.dev.errors import PortTaken, ServerFailed
from app.platform.dev.keystore import SaslSsl
from app.platform.dev.process import ServerProcess, clean_environment

# Everything on stdout, which is the broker's server.log: without a configuration a broker that fails
# says nothing. Left out are hundreds of lines of settings at each start.
_LOGGING = """\
status = error
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n%throwable
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = stdout
logger.settings.name = org.apache.kafka.common.config.AbstractConfig
logger.settings.level = warn
"""

_START_SECONDS = 90.0
_READY = b"Kafka Server started"
_ADDRESS_IN_USE = b"Address already in use"


class Broker:
    """A broker and controller. `jvm_flags` replace the archive of classes."""

    def __init__(self, number: int, folder: Path, jvm_flags: Sequence[str]) -> None:
        self.number = number
        self.folder = folder
        self.storage = folder / "storage"
        self.port = 0
        self.controller_port = 0
        self.internal_port = 0
        self._jvm_flags = list(jvm_flags)
        self._settings_file = folder / "server.properties"
        self._formatted_mark = folder / "formatted"
        self.process = ServerProcess(f"Kafka broker {number}", folder, str(self._settings_file))

    @property
    def is_formatted(self) -> bool:
        return self._formatted_mark.exists()

    def configure(
        self, controllers: Mapping[int, int], settings: Mapping[str, str], *, secured: bool
    ) -> None:
        """Write the settings file: this node's own settings, then `settings`."""
        listeners = {"CLIENT": self.port, "CONTROLLER": self.controller_port}
        if secured:
            listeners["INTERNAL"] = self.internal_port
        node = node_settings(self.number, controllers, listeners, secured=secured)
        every = {**node, "log.dirs": str(self.storage), **settings}
        # A properties file: a backslash (Windows paths) would start an escape.
        lines = [f"{name}={value}".replace("\\", "\\\\") for name, value in every.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._settings_file.touch(mode=0o600)
        self._settings_file.write_text("\n".join(lines) + "\n")

    def format(self, jars: Sequence[Path], cluster_id: str, security: SaslSsl | None) -> None:
        """Format the storage of a new node. Raises ServerFailed."""
        shutil.rmtree(self.storage, ignore_errors=True)  # half formatted by a killed process
        arguments = ["format", "--cluster-id", cluster_id, "--config", str(self._settings_file)]
        if security is not None:
            user = f"name={security.username},password={security.password}"
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"]:
                arguments += ["--add-scram", f"{mechanism}=[{user}]"]
        java.run_tool(
            self._command(jars, _archive_flags(jars), "kafka.tools.StorageTool", *arguments),
            "formatting Kafka's storage",
        )
        self._formatted_mark.touch()

    def spawn(self, jars: Sequence[Path]) -> None:
        flags = self._jvm_flags or _archive_flags(jars)
        command = self._command(jars, flags, "kafka.Kafka", str(self._settings_file))
        self.process.spawn(command, clean_environment())

    def wait_ready(self, cancelled: Callable[[], bool]) -> None:
        """Wait until the broker serves. Raises PortTaken, ServerFailed or StartCancelled."""
        process = self.process
        try:
            process.wait_ready(lambda: process.log_contains(_READY), _START_SECONDS, cancelled)
        except ServerFailed:
            if process.log_contains(_ADDRESS_IN_USE):
                raise PortTaken(self.port, process.name) from None
            raise

    def _command(
        self, jars: Sequence[Path], flags: Sequence[str], main: str, *arguments: str
    ) -> list[str]:
        logging = self.folder / "log4j2.properties"
        logging.write_text(_LOGGING)
        return [
            java.java(),
            *java.JVM_FLAGS,
            *flags,
            f"-Dlog4j2.configurationFile={logging}",
            f"-Dkafka.logs.dir={self.folder}",
            f"-Djava.io.tmpdir={self.folder}",
            f"-XX:ErrorFile={self.folder / 'jvm-error.log'}",
            "-cp",
            java.class_path(jars),
            main,
            *arguments,
        ]


def _archive_flags(jars: Sequence[Path]) -> list[str]:
    archive = java.archive_path(jars)
    # Java warns of each small part of an archive that it cannot use; it does without.
    return [f"-XX:AOTCache={archive}", "-Xlog:aot*=error"] if archive.exists() else []
