"""`app dev` with the mock broker on a machine that has no network."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from app.platform.dev.process import free_port

# The hook sees every connection and every look-up of Python code, and is there for all of the process.
OFFLINE = """
import sys

def refuse(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address if isinstance(address, (str, bytes)) else address[0]
    if host not in (None, "", "localhost", "127.0.0.1", "::1") and not str(host).startswith("/"):
        print("no network to", host, file=sys.stderr, flush=True)
        raise OSError(f"no network to {host}")

sys.addaudithook(refuse)
from app.__main__ import main

sys.argv = ["app", *sys.argv[1:]]
main()
"""


def test_app_dev_with_the_mock_broker_needs_no_network(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATABASE_", "KAFKA_", "DEV_"))
    }
    command = [sys.executable, "-c", OFFLINE, "dev", "--broker", "mock", "--port", port]
    said = tmp_path / "said"
    with (
        said.open("wb") as output,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while not is_ready(port):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=10) as page:
                assert page.status == 200
        finally:
            process.terminate()
    assert process.returncode == 0, said.read_text()
    assert "no network to" not in said.read_text()


def is_ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
