"""Folders of plugins as the commands are given them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from zeno_fast.cli.output import NothingFound, warn
from zeno_fast.errors import PluginLoadError, ZenoError
from zeno_fast.manager import PluginManager
from zeno_fast.manifest import FILE_NAME, Manifest
from zeno_fast.schema import did_you_mean

FOLDER = click.Path(path_type=Path)


def plugin_folders(root: Path) -> list[Path]:
    """Return the plugin folders directly below `root`. Raises NothingFound where there are none."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise NothingFound(f"{root}: {what}{_near(root)}")
    folders = [entry for entry in sorted(root.iterdir()) if (entry / FILE_NAME).is_file()]
    if folders:
        return folders
    if (root / FILE_NAME).is_file():
        raise NothingFound(
            f"{root} is a plugin's own folder; name the folder that holds it: "
            f"{root.resolve().parent}"
        )
    raise NothingFound(
        f"{root}: no plugins below it; a plugin is a folder that holds a `{FILE_NAME}`"
    )


def read_manifest(folder: Path, *, strict: bool = False) -> Manifest:
    """Read one plugin's manifest. Raises NothingFound where there is none."""
    if not folder.exists():
        raise NothingFound(f"{folder}: no such folder{_near(folder)}")
    if folder.is_file() and folder.suffix not in (".yaml", ".yml"):
        raise NothingFound(f"{folder}: neither a plugin's folder nor a manifest")
    if folder.is_dir() and not (folder / FILE_NAME).exists():
        inner = [entry.name for entry in sorted(folder.iterdir()) if (entry / FILE_NAME).is_file()]
        if inner:
            raise NothingFound(
                f"{folder}: no `{FILE_NAME}` in it, but plugins below it; "
                f"name one of them, such as {folder / inner[0]}"
            )
        try:
            return Manifest.load(folder, strict=strict)
        except PluginLoadError as error:
            raise NothingFound(str(error)) from error
    return Manifest.load(folder, strict=strict)


def load_plugins(manager: PluginManager, root: Path, name: str | None) -> Mapping[str, ZenoError]:
    """Load the plugins below `root`, or only the named one; return what failed, by folder.

    Raises NothingFound where there is no such plugin, and what `load_plugin` does for a named one.
    """
    folders = plugin_folders(root)
    if name is None:
        return manager.load_plugins_from_dir(root).failures
    failures: dict[str, ZenoError] = {}
    names: dict[str, Path] = {}
    for folder in folders:
        try:
            names[Manifest.load(folder).name] = folder
        except ZenoError as error:
            if folder.name == name:
                raise
            failures[folder.name] = error
    if name not in names:
        hint = did_you_mean(name, names)
        known = f"; there are {', '.join(sorted(names))}" if names else ""
        raise NothingFound(f"no plugin {name!r} in {root}{f'; {hint}' if hint else known}")
    manager.load_plugin(names[name])
    return failures


def warn_of_manifests(manager: PluginManager) -> None:
    """Show what is odd in the manifests of the loaded plugins; with `-v` the log has shown it."""
    if not click.get_current_context().params.get("verbose"):
        for plugin in manager.list_plugins():
            for warning in plugin.manifest.warnings:
                warn(warning)


def language_of(folder: Path) -> str:
    """Guess from a plugin's sources what it is written in; "" where nothing tells."""
    for pattern, language in _LANGUAGES.items():
        if any(folder.glob(pattern)):
            return language
    return ""


_LANGUAGES = {
    "*.c": "C",
    "Cargo.toml": "Rust",
    "*.rs": "Rust",
    "*.go": "Go",
    "*.cs": "C#",
    "*.php": "PHP",
    "*.mjs": "JavaScript",
    "*.js": "JavaScript",
    "*.py": "Python",
    "*.rb": "Ruby",
}


def _near(path: Path) -> str:
    """Suggest a neighbour whose name is nearly that of a path that does not exist."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    hint = did_you_mean(path.name, names) if path.name else None
    return f"; {hint}" if hint else ""
