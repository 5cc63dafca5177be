"""Run inside a rendered service: start the servers that all variants of a run share.

python shared_servers.py FOLDER

Returns when they serve, with their addresses in FOLDER/servers.json. They run as long as a process
has the pipe FOLDER/alive open for writing. A mock broker cannot be shared: then the tests of each
service start their own.
"""

import json
import os
import sys
import time
from pathlib import Path

from app.platform.dev.servers import Servers


def main(folder: Path) -> int:
    addresses = folder / "servers.json"
    if (serving := os.fork()) == 0:
        os.setsid()
        serve(folder, addresses)
        return 0
    while not addresses.exists():
        ended, _ = os.waitpid(serving, os.WNOHANG)
        if ended:
            return 1
        time.sleep(0.1)
    return 0


def serve(folder: Path, addresses: Path) -> None:
    with (folder / "alive").open("rb") as alive:
        with Servers(folder / "servers", fresh=True, fsync=False) as servers:
            found = {"DATABASE_URL": servers.database_url}
            if servers.broker_kind != "mock":
                found["KAFKA_BOOTSTRAP_SERVERS"] = servers.kafka_bootstrap_servers
            written = addresses.with_suffix(".new")
            written.write_text(json.dumps(found))
            written.rename(addresses)
            alive.read()
        addresses.unlink()


sys.exit(main(Path(sys.argv[1])))
