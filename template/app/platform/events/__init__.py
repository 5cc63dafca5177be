"""Events: their types, versions and schemas."""

from pathlib import Path

KEPT_SCHEMAS = Path("tests/contracts")
"""The folder of the stored schemas, from the project's folder. An image does not have it."""
