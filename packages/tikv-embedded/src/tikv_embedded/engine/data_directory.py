"""The directory of a durable cluster: whose it is, whether it may be used, and who uses it now.

A directory of ours holds the marker file `tikv-embedded.json` and RocksDB's files under `rocksdb/`. The marker is
written first and at once, so a crash at any moment leaves either an empty directory or one of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tikv_embedded.errors import DataDirectoryError

MARKER_NAME = "tikv-embedded.json"
"""Name of the marker file."""
FORMAT_NAME = "tikv-embedded"
"""Value of the marker's `format`."""
FORMAT_VERSION = 1
"""Value of the marker's `version`; one more for each layout that older programs cannot read."""

_NEW_MARKER_NAME = MARKER_NAME + ".new"


class DataDirectory:
    """A data directory held by this process alone until `close`.

    Construction creates what is missing, and raises `DataDirectoryError` for a directory that is in use, foreign, of a
    newer version or unusable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock()
            _claim(path)
            self.database.mkdir(exist_ok=True)
        except OSError as error:
            self.close()
            raise DataDirectoryError(f"data directory {path} cannot be used: {error.strerror}") from error
        except DataDirectoryError:
            self.close()
            raise

    @property
    def database(self) -> Path:
        """Where RocksDB keeps its files."""
        return self.path / "rocksdb"

    def close(self) -> None:
        """Let others use the directory; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> None:
        """Lock the directory itself, which leaves no file in a directory that turns out to be foreign."""
        if sys.platform == "win32":
            return  # Directories cannot be locked there; RocksDB's own lock file has to do.
        import fcntl  # noqa: PLC0415  # Not on every platform.

        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataDirectoryError(
                f"data directory {self.path} is locked: another embedded cluster is using it"
            ) from error


def _claim(path: Path) -> None:
    """Check the marker, or put one into an empty directory."""
    marker = path / MARKER_NAME
    if marker.exists():
        _check_marker(path, marker)
        return
    if any(entry.name != _NEW_MARKER_NAME for entry in path.iterdir()):
        raise DataDirectoryError(f"data directory {path} is foreign: it is not empty and holds no {MARKER_NAME}")
    text = json.dumps({"format": FORMAT_NAME, "version": FORMAT_VERSION}) + "\n"
    new = path / _NEW_MARKER_NAME
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(marker)


def _check_marker(path: Path, marker: Path) -> None:
    """Raise unless `marker` names our format in a version this program reads."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        name, version = content["format"], content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirectoryError(f"data directory {path} is foreign: its {MARKER_NAME} cannot be read") from error
    if name != FORMAT_NAME or type(version) is not int or version < 1:
        raise DataDirectoryError(f"data directory {path} is foreign: its {MARKER_NAME} names another format")
    if version > FORMAT_VERSION:
        raise DataDirectoryError(
            f"data directory {path} has format {version}, newer than the {FORMAT_VERSION} this version reads"
        )
