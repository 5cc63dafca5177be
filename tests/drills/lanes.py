"""Run all drills, in two lanes side by side: most of a drill's time is waiting.

python -m tests.drills.lanes FOLDER

The output of a run is printed when the run ends.
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
    command = ("-m", "tests.drills", str(service), *options)
    result = subprocess.run(
        (sys.executable, *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"$ python {' '.join(command)}\n{result.stdout}", flush=True)
    return abs(result.returncode)


if __name__ == "__main__":
    sys.exit(main())
