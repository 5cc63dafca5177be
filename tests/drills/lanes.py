"""Run all drills, in two lanes side by side: most of a drill's time is waiting.

python -m tests.drills.lanes FOLDER

Each line of output begins with the name of its lane.
"""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

READ_SIDE = ["--module", "outbox", "--module", "cqrs", "-k", "read_side"]
# Each lane takes about as long as the other.
LANES: dict[str, list[list[str]]] = {
    "base": [[]],
    "modules": [["--module", "outbox"], READ_SIDE, ["--module", "event_sourcing", "-k", "whole"]],
}


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    with ThreadPoolExecutor(len(LANES)) as lanes:
        codes = lanes.map(lambda lane: run_lane(folder / lane[0], lane[1]), LANES.items())
        return max(codes)


def run_lane(folder: Path, runs: Sequence[Sequence[str]]) -> int:
    """Return the largest exit code of the lane's runs; each is made, whatever the others say."""
    folder.mkdir(parents=True, exist_ok=True)
    return max(run_drills(folder / "drill-service", options) for options in runs)


def run_drills(service: Path, options: Sequence[str]) -> int:
    command = (sys.executable, "-m", "tests.drills", str(service), *options)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"[{service.parent.name}] {line}", end="", flush=True)
    return abs(process.returncode)


if __name__ == "__main__":
    sys.exit(main())
