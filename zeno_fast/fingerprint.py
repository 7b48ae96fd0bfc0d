"""What a plugin's folder looks like, so that it can be told whether it changes or has changed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Baseline", "Fingerprint", "is_of_no_account"]

MOST_HASHED = 64 * 1024 * 1024  # bytes of a file above which its time says whether it has changed

IGNORED_FOLDERS = frozenset(
    {"__pycache__", ".git", ".hg", ".svn", ".idea", ".vscode", ".mypy_cache", ".ruff_cache"}
)
_IGNORED = re.compile(r".*\.(?:log|pid|sock|pyc)|\.DS_Store|\.nfs[0-9a-f]+", re.IGNORECASE)
# What editors and transfers write on the way: it is no part of a plugin, but says that more comes.
_PASSING = re.compile(
    r".*(?:\.sw[a-px]|\.te?mp|\.part|\.partial|\.filepart|\.crdownload|~|___jb_(?:tmp|old)___)"
    r"|\.#.*|#.*#|4913|\.goutputstream-.*"
    r"|\..+\.[A-Za-z0-9]{6}"  # rsync's
)

# Size, time, inode and mode of a file.
_Look = tuple[int, int, int, int]


def is_of_no_account(parts: Iterable[str]) -> bool:
    """Tell whether a path within a plugin's folder is neither of the plugin nor announces any."""
    return any(part in IGNORED_FOLDERS or _IGNORED.fullmatch(part) for part in parts)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The files of a folder at one moment.

    Attributes:
        files: How each looks, by its path in the folder.
        passing: The same of those that editors and transfers leave on the way.
    """

    files: Mapping[str, _Look] = field(default_factory=dict)
    passing: Mapping[str, _Look] = field(default_factory=dict)

    @classmethod
    def take(cls, folder: Path, data: Iterable[Path] = ()) -> Fingerprint | None:
        """Look at a folder; None where there is none.

        Args:
            data: Folders and files in it which the plugin itself may write to.
        """
        if not folder.is_dir():
            return None
        ignored = {str(path) for path in data}
        files: dict[str, _Look] = {}
        passing: dict[str, _Look] = {}
        for root, folders, names in os.walk(folder):
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            folders[:] = [
                name
                for name in folders
                if name not in IGNORED_FOLDERS and os.path.join(root, name) not in ignored
            ]
            for name in (*names, *links):
                path = os.path.join(root, name)
                if _IGNORED.fullmatch(name) or path in ignored:
                    continue
                try:
                    look = os.stat(path)
                except OSError:  # it went away, or is a link to nothing
                    continue
                kept = passing if _PASSING.fullmatch(name) else files
                kept[os.path.relpath(path, folder)] = (
                    0 if stat.S_ISDIR(look.st_mode) else look.st_size,
                    0 if stat.S_ISDIR(look.st_mode) else look.st_mtime_ns,
                    look.st_ino,
                    look.st_mode,
                )
        return cls(files, passing)


class Baseline:
    """What a folder held when it was last acted upon.

    Args:
        previous: The one before it, whose files need not be read again where they look the same.
        data: What the plugin may write to; left out.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        previous: Baseline | None = None,
        data: Iterable[Path] = (),
    ) -> None:
        self._folder = folder
        within = tuple(os.path.relpath(path, folder) for path in data)
        self._files = {
            name: look
            for name, look in fingerprint.files.items()
            if not any(name == path or name.startswith(path + os.sep) for path in within)
        }
        self._digests: dict[str, str] = {}
        for name, look in self._files.items():
            if previous is not None and previous._files.get(name) == look:
                digest = previous._digests.get(name)
            else:
                digest = _digest(folder / name, look)
            if digest is not None:
                self._digests[name] = digest

    def looks_like(self, fingerprint: Fingerprint) -> bool:
        """Tell whether nothing at all has changed."""
        return self._files == fingerprint.files

    def holds_what(self, fingerprint: Fingerprint) -> bool:
        """Tell whether a folder's files have the same names and contents; reads what looks new."""
        if self._files.keys() != fingerprint.files.keys():
            return False
        for name, look in fingerprint.files.items():
            size, _, _, mode = known = self._files[name]
            if known == look:
                continue
            if (size, mode) != (look[0], look[3]):
                return False
            digest = self._digests.get(name)
            if digest is None or digest != _digest(self._folder / name, look):
                return False
        return True


def _digest(path: Path, look: _Look) -> str | None:
    """Return the digest of a file; None where it is too large, has changed or cannot be read."""
    if look[0] > MOST_HASHED or not stat.S_ISREG(look[3]):
        return None
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            now = os.fstat(stream.fileno())
    except OSError:
        return None
    if (now.st_size, now.st_mtime_ns, now.st_ino) != look[:3]:
        return None
    return digest.hexdigest()
