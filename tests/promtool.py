"""Prometheus' `promtool`, from the PATH or from Debian's package, without installing that.

python -m tests.promtool FOLDER     print the folder that has it; FOLDER keeps it
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, MEMBER = "prometheus", "./usr/bin/promtool"
SECONDS = 300


class NotAvailable(Exception):
    """promtool is neither installed nor to be had from a package."""


def find(folder: Path) -> Path:
    """Return the folder of `promtool`. Raises NotAvailable."""
    if installed := shutil.which("promtool"):
        return Path(installed).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "promtool").exists():
        with TemporaryDirectory(dir=folder) as temporary:
            extract(download(Path(temporary)), folder)
    return folder


def download(folder: Path) -> Path:
    """Download the package, if need be with package lists of our own."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NotAvailable("install Prometheus, which has it (there is no apt-get here)")
    lists = [option for kind in ("State", "Cache") for option in ("-o", f"Dir::{kind}={folder}")]
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "archives" / "partial").mkdir(parents=True)
    said = apt(folder, "download", PACKAGE)
    if not [*folder.glob("*.deb")]:
        said += apt(folder, *lists, "update") + apt(folder, *lists, "download", PACKAGE)
    if not (found := [*folder.glob("*.deb")]):
        raise NotAvailable(f"Debian's package {PACKAGE} cannot be downloaded: {said}")
    return found[0]


def apt(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ("apt-get", "-q", *arguments),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def extract(package: Path, folder: Path) -> None:
    done = subprocess.run(
        ("dpkg-deb", "--fsys-tarfile", package), capture_output=True, timeout=SECONDS, check=True
    )
    archive = package.with_suffix(".tar")
    archive.write_bytes(done.stdout)
    with tarfile.open(archive) as content, (package.parent / "promtool").open("wb") as output:
        member = content.extractfile(MEMBER)
        assert member is not None
        shutil.copyfileobj(member, output)
    (package.parent / "promtool").chmod(0o755)
    (package.parent / "promtool").replace(folder / "promtool")


def main() -> int:
    try:
        print(find(Path(sys.argv[1]).resolve()))
    except (NotAvailable, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
