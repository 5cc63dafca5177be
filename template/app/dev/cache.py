"""Where downloads are kept between runs and between services."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for embedded servers."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "embedded-servers"
