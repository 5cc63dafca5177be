"""The golden samples: one message of each version of each event, as it was published.

They are never changed or deleted, because messages like them are still out there. A new version of
an event needs a new sample (a new file), beside its exported schema (`app schemas export`).
"""

from pathlib import Path

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden"
SCHEMAS = FOLDER / "schemas"


def golden_samples() -> list[Path]:
    """`golden/<event type>/<version>.json`."""
    return sorted(GOLDEN.glob("*/*.json"))


def sample_id(path: Path) -> str:
    return f"{path.parent.name} {path.stem}"
