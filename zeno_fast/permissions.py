"""May this plugin do that? What the manifest does not allow is denied.

The rules compare what is meant, not how it is spelt: paths after symbolic links and `..` are
resolved, component by component; URLs after they are taken apart, never as text. A check of a path
says what the path meant when it was asked: who then opens it has to open what was checked.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zeno_fast.errors import PermissionDenied, UsageError

__all__ = [
    "KINDS",
    "Permissions",
    "allows",
    "check",
    "granted_path",
    "granted_variables",
    "outermost_grants",
    "understands_url_pattern",
    "widened",
]

# Longer ones no system and no server knows; to look at them takes time that nobody bounds.
MOST_PATH = 32768
MOST_URL = 65536

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_URL_PATTERN = re.compile(
    r"(?:(?P<scheme>\*|[A-Za-z][A-Za-z0-9+.-]*)://)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|\*|(?:\*\.)?[^\s\x00-\x20*/:?#@\[\]\\]+)"
    r"(?::(?P<port>[0-9]{1,5}|\*))?"
    r"(?P<path>[/?][^\s\\#]*)?"
)
# Backslashes, blanks and control characters are read differently by different clients.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_UNRESERVED = re.compile(
    r"%(2[DdEe]|5[Ff]|7[Ee]|3[0-9]|4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa])"
)
# An encoded slash, backslash or NUL, or any of them or a dot encoded twice.
_ENCODED_SEPARATOR = re.compile(r"%(?:2[Ff]|5[Cc]|00|(?:25)+(?:2[EeFf]|5[Cc]|00))")
# Variables that change what a process loads: `*` does not stand for them, only their own name does.
_LOADER_VARIABLE = re.compile(r"LD_|DYLD_|PYTHON", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Permissions:
    """The section `permissions`; empty means denied.

    Attributes:
        network: URL patterns, such as `https://api.example.com/*`, `*.example.com`, `*`.
        filesystem: Files, or folders with all below them; relative ones to the plugin's folder.
        env: Names of variables.
        database: Names of connections.
        scope: `read`, `write` or both.
    """

    network: tuple[str, ...] = ()
    filesystem: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    database: tuple[str, ...] = ()
    scope: frozenset[str] = frozenset()


def check(
    permissions: Permissions,
    folder: Path,
    kind: str,
    resource: str,
    *,
    plugin: str | None = None,
) -> None:
    """Do nothing where the resource is allowed.

    Args:
        permissions: The manifest's.
        folder: The plugin's folder.
        kind: `network`, `filesystem`, `env`, `database` or `scope`.
        resource: A URL, a path, a variable, a connection; for a scope `read` or `write`.
        plugin: The plugin's name, for the message.

    Raises PermissionDenied naming the line that would allow it, UsageError for an unknown kind.
    """
    if allows(permissions, folder, kind, resource):
        return
    example = resource
    if kind == "network":
        example = _host_of(resource) or resource
    elif kind == "filesystem" and _can_name_a_file(resource):
        example = _shown_path(folder, resource)
    quoted = json.dumps(example, ensure_ascii=not example.isprintable())
    raise PermissionDenied(
        f"{kind}: the plugin{f' {plugin!r}' if plugin else ''} may not use {resource!r}; to allow "
        f"it, add under `permissions:` in {folder / 'manifest.yaml'} the line "
        f"`{kind}: [{quoted}]`",
        plugin=plugin,
    )


def allows(permissions: Permissions, folder: Path, kind: str, resource: str) -> bool:
    """Tell whether the resource is allowed; the arguments are those of `check`."""
    if kind not in KINDS:
        raise UsageError(f"no such kind of permission: {kind!r}; one of {', '.join(KINDS)}")
    if not isinstance(resource, str):
        raise UsageError(f"a resource is named by a str, not by {type(resource).__name__}")
    return KINDS[kind](permissions, folder, resource)


def widened(old: Permissions, new: Permissions, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what new permissions allow and old ones did not: their entries, by kind.

    An entry that is not certain to allow nothing more is among them.

    Args:
        folder: The plugin's folder, to which relative paths of both belong.
    """
    more = {
        "network": [
            entry
            for entry in new.network
            if entry not in old.network and not any(_covers_url(one, entry) for one in old.network)
        ],
        "filesystem": [
            entry for entry in new.filesystem if not _covers_path(old.filesystem, folder, entry)
        ],
        "env": [
            entry
            for entry in new.env
            if entry not in old.env and (entry == "*" or not _allows_env(old, folder, entry))
        ],
        "database": [entry for entry in new.database if not _allows_database(old, folder, entry)],
        "scope": sorted(new.scope - old.scope),
    }
    return {kind: tuple(entries) for kind, entries in more.items() if entries}


def granted_variables(permissions: Permissions) -> dict[str, str]:
    """Return the host's variables that a plugin may see."""
    if not permissions.env:
        return {}
    return {
        name: value for name, value in os.environ.items() if _allows_env(permissions, Path(), name)
    }


def outermost_grants(permissions: Permissions, folder: Path) -> list[str]:
    """Return the entries of `filesystem` that lie in no other, as they are written.

    What is within a granted folder is a plugin's to change: an entry that leads there could be made
    a link to anywhere. It grants nothing that the outer one does not.
    """
    if "*" in permissions.filesystem:
        return list(permissions.filesystem)  # there is nothing more to be had
    paths = [
        os.path.normcase(os.path.normpath(folder / granted_path(grant)))
        for grant in permissions.filesystem
    ]
    return [
        grant
        for grant, path in zip(permissions.filesystem, paths, strict=True)
        if not any(
            path != other and path.startswith(other.rstrip(os.sep) + os.sep) for other in paths
        )
    ]


def granted_path(grant: str) -> str:
    """Return the file or folder that an entry of `filesystem` other than `*` names, as written."""
    return re.sub(r"[/\\]\*{1,2}$", "", grant) or os.sep  # `./storage/*` means the tree


def _allows_env(permissions: Permissions, _folder: Path, name: str) -> bool:
    if name in permissions.env:
        return True
    return "*" in permissions.env and not _LOADER_VARIABLE.match(name)


def _allows_database(permissions: Permissions, _folder: Path, connection: str) -> bool:
    return connection in permissions.database or "*" in permissions.database


def _allows_scope(permissions: Permissions, _folder: Path, mode: str) -> bool:
    return mode in permissions.scope


def _allows_path(permissions: Permissions, folder: Path, path: str) -> bool:
    if not permissions.filesystem or not _can_name_a_file(path):
        return False
    wanted = _real_parts(folder, path)
    for grant in outermost_grants(permissions, folder):
        if grant == "*":
            return True
        granted = _real_parts(folder, granted_path(grant))
        if wanted[: len(granted)] == granted:
            return True
    return False


def _can_name_a_file(path: str) -> bool:
    try:
        return 0 < len(path) <= MOST_PATH and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _real_parts(folder: Path, path: str) -> tuple[str, ...]:
    return Path(os.path.normcase(os.path.realpath(folder / path))).parts


def _covers_path(grants: tuple[str, ...], folder: Path, entry: str) -> bool:
    """Tell whether an entry of `filesystem` leads to nothing beyond what others grant."""
    if "*" in grants or entry == "*":
        return "*" in grants
    written, real = _both_parts(folder, entry)
    for grant in grants:
        written_grant, real_grant = _both_parts(folder, grant)
        # By both: a link in a granted folder may lead out of it.
        if written[: len(written_grant)] == written_grant and real[: len(real_grant)] == real_grant:
            return True
    return False


def _both_parts(folder: Path, grant: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parts of a granted path as it is written, and of where it leads."""
    path = granted_path(grant)
    written = os.path.normcase(os.path.normpath(folder / path))
    return Path(written).parts, _real_parts(folder, path)


def _shown_path(folder: Path, path: str) -> str:
    real, real_folder = Path(os.path.realpath(folder / path)), Path(os.path.realpath(folder))
    if real.is_relative_to(real_folder):
        return "./" + real.relative_to(real_folder).as_posix()
    return str(real)


@dataclass(frozen=True, slots=True)
class _UrlRule:
    """A URL pattern taken apart; None matches anything."""

    scheme: str | None
    host: str
    subdomains: bool
    port: int | str | None
    path: tuple[str, ...] | None  # what stands between its asterisks
    with_query: bool


@dataclass(frozen=True, slots=True)
class _Url:
    """A URL taken apart and brought to one spelling; `path` is None where it is ambiguous."""

    scheme: str
    host: str
    port: int | None
    path: str | None
    query: str


def understands_url_pattern(pattern: str) -> bool:
    """Tell whether a pattern can allow anything."""
    return pattern == "*" or _url_rule(pattern) is not None


def _allows_url(permissions: Permissions, _folder: Path, text: str) -> bool:
    if "*" in permissions.network:
        return True
    url = _parse_url(text)
    if url is None:
        return False
    rules = (_url_rule(pattern) for pattern in permissions.network)
    return any(rule is not None and _matches(rule, url) for rule in rules)


def _matches(rule: _UrlRule, url: _Url) -> bool:
    schemes = tuple(_PORTS) if rule.scheme is None else (rule.scheme,)
    if url.scheme not in schemes and rule.scheme != "*":
        return False
    port = _PORTS.get(url.scheme) if rule.port is None else rule.port
    if port not in ("*", url.port):
        return False
    return _host_matches(rule, url.host) and _path_matches(rule, url)


def _host_matches(rule: _UrlRule, host: str) -> bool:
    if rule.subdomains:
        return host.endswith("." + rule.host) and ":" not in host
    return rule.host in ("*", host)


def _path_matches(rule: _UrlRule, url: _Url) -> bool:
    if rule.path is None or url.path is None:
        return rule.path is None
    whole = f"{url.path}?{url.query}" if rule.with_query else url.path
    return _fits(rule.path, whole)


def _fits(parts: tuple[str, ...], text: str) -> bool:
    """Tell whether a text has a pattern's parts in their order, with anything between them.

    Each is taken where it comes first. A regular expression would try all else as well, which takes
    as long as whoever wrote both pattern and text likes.
    """
    first, *middle = parts
    if not middle:
        return text == first
    *middle, last = middle
    end = len(text) - len(last)
    at = len(first)
    if at > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@functools.lru_cache(maxsize=1024)
def _url_rule(pattern: str) -> _UrlRule | None:
    match = _URL_PATTERN.fullmatch(pattern)
    if match is None:
        return None
    host = match["host"]
    subdomains = host.startswith("*.")
    normal = "*" if host == "*" else _normal_host(host.removeprefix("*."))
    if normal is None:
        return None
    port = match["port"]
    path = match["path"]
    compiled = None
    if path not in (None, "/*"):
        parts = path if path.startswith("/") else "/" + path
        compiled = tuple(parts.split("*"))
    return _UrlRule(
        scheme=match["scheme"].lower() if match["scheme"] else None,
        host=normal,
        subdomains=subdomains,
        port=int(port) if port and port != "*" else port,
        path=compiled,
        with_query=path is not None and "?" in path,
    )


def _covers_url(old: str, new: str) -> bool:
    """Tell whether one URL pattern matches whatever another one does; False where in doubt."""
    if "*" in (old, new):
        return old == "*"
    outer, inner = _url_rule(old), _url_rule(new)
    if inner is None:
        return True  # it can allow nothing
    return (
        outer is not None
        and (
            outer.scheme in ("*", inner.scheme) or (outer.scheme is None and inner.scheme in _PORTS)
        )
        and _covers_host(outer, inner)
        and _covers_port(outer, inner)
        and _covers_rest(outer, inner)
    )


def _covers_host(outer: _UrlRule, inner: _UrlRule) -> bool:
    if outer.subdomains:
        below = inner.host.endswith("." + outer.host) and ":" not in inner.host
        return below or (inner.subdomains and inner.host == outer.host)
    return outer.host == "*" or (outer.host == inner.host and not inner.subdomains)


def _covers_port(outer: _UrlRule, inner: _UrlRule) -> bool:
    if outer.port in ("*", inner.port):
        return True
    # No port stands for the scheme's own.
    own = _PORTS.get(inner.scheme or "")
    return own is not None and (own if outer.port is None else outer.port) == (
        own if inner.port is None else inner.port
    )


def _covers_rest(outer: _UrlRule, inner: _UrlRule) -> bool:
    if outer.path is None or inner.path is None:
        return outer.path is None
    # What an asterisk of the inner one stands for, only one of the outer one can match.
    text = "\0".join(inner.path)
    if outer.with_query:
        return _fits(outer.path, text if inner.with_query else text + "?\0")
    if inner.with_query:
        text, _, _ = text.partition("?")
        if "\0" in text:
            return False  # it could stand for a question mark as well
    return _fits(outer.path, text)


def _parse_url(text: str) -> _Url | None:
    """Take a URL apart; None where clients could disagree on what it means."""
    if len(text) > MOST_URL or _AMBIGUOUS.search(text):
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or "@" in parts.netloc or not parts.hostname:
        return None
    bracketed = parts.netloc.startswith("[")
    host = _normal_host(f"[{parts.hostname}]" if bracketed else parts.hostname)
    if host is None:
        return None
    scheme = parts.scheme.lower()
    return _Url(
        scheme=scheme,
        host=host,
        port=_PORTS.get(scheme) if port is None else port,
        path=_normal_path(parts.path or "/"),
        query=parts.query,
    )


def _normal_host(host: str) -> str | None:
    if host.startswith("["):
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            return None
    name = host.removesuffix(".").lower()
    # Clients disagree on what other letters become (`ß`): such hosts are spelt `xn--...` here.
    if not name.isascii() or not all(name.split(".")) or re.search("[%:*]", name):
        return None
    return name


def _normal_path(path: str) -> str | None:
    """Resolve `.` and `..`, also where they are encoded; None where a server could read more in."""
    if _ENCODED_SEPARATOR.search(path):
        return None
    decoded = _UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path)
    segments: list[str] = []
    parts = decoded.split("/")[1:]
    for index, segment in enumerate(parts):
        if segment in {".", ".."}:
            if segment == ".." and segments and segments.pop() == "":
                return None  # `a//..` is `a` to some servers, `` to those that merge slashes
            if index == len(parts) - 1:
                segments.append("")
        elif segment.split(";")[0] in {".", ".."}:
            return None  # `..;` is `..` to some servers
        else:
            segments.append(segment)
    return "/" + "/".join(segments)


def _host_of(text: str) -> str | None:
    """Return the pattern that would allow a URL's host, or None where it is no URL."""
    url = _parse_url(text)
    if url is None:
        return None
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port in (None, _PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{host}{port}/*"


KINDS: dict[str, Callable[[Permissions, Path, str], bool]] = {
    "network": _allows_url,
    "filesystem": _allows_path,
    "env": _allows_env,
    "database": _allows_database,
    "scope": _allows_scope,
}
