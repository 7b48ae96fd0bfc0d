import os
import sys
import time
from pathlib import Path
from random import Random

import pytest

from zeno_fast.errors import PermissionDenied, UsageError
from zeno_fast.permissions import (
    Permissions,
    allows,
    check,
    understands_url_pattern,
    widened,
)

needs_symlinks = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights")


def url_allowed(patterns, url):
    return allows(Permissions(network=tuple(patterns)), Path("/plugins/p"), "network", url)


def path_allowed(folder, grants, path):
    return allows(Permissions(filesystem=tuple(grants)), folder, "filesystem", str(path))


@pytest.mark.parametrize(
    ("kind", "resource"),
    [
        ("network", "https://api.example.com/"),
        ("filesystem", "./storage/x"),
        ("filesystem", "."),
        ("env", "HOME"),
        ("database", "main"),
        ("scope", "read"),
        ("scope", "write"),
    ],
)
def test_without_a_permission_everything_is_denied(tmp_path, kind, resource):
    assert not allows(Permissions(), tmp_path, kind, resource)
    with pytest.raises(PermissionDenied):
        check(Permissions(), tmp_path, kind, resource)


def test_an_unknown_kind_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(UsageError, match="network"):
        allows(Permissions(), tmp_path, "files", "x")
    with pytest.raises(UsageError, match="str"):
        allows(Permissions(env=("A",)), tmp_path, "env", None)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/",
        "https://api.example.com",
        "https://api.example.com/v1/users?id=1#top",
        "https://API.Example.COM./v1",
        "https://api.example.com:443/v1",
        "HTTPS://api.example.com/v1",
    ],
)
def test_a_url_grant_allows_its_host_however_it_is_spelt(url):
    assert url_allowed(["https://api.example.com/*"], url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com.evil.org/",
        "https://api.example.com.evil.org/https://api.example.com/",
        "https://api.example.com@evil.org/",
        "https://api.example.com:443@evil.org/",
        "https://user:secret@api.example.com/",
        "https://@api.example.com/",
        "https://evil.org/https://api.example.com/",
        "https://evil.org#https://api.example.com/",
        "https://evil.org?https://api.example.com/",
        "https://evil.org\\.api.example.com/",
        "https://api.example.com\\@evil.org/",
        "https://evil.org\\@api.example.com/",
        "https://xapi.example.com/",
        "https://sub.api.example.com/",
        "https://example.com/",
        "http://api.example.com/",
        "ftp://api.example.com/",
        "https://api.example.com:8443/",
        "https://api.example.com:80/",
        "https://api.example.com:99999/",
        "https://api.example.com:x/",
        "https://api.example.com../",
        "https://.api.example.com/",
        "//api.example.com/",
        "api.example.com",
        "https:api.example.com/",
        "https:///api.example.com/",
        "https://api.example.com\t.evil.org/",
        "https://api.exam\nple.com/",
        " https://api.example.com/",
        "https://api。example。com/",
        "https://api.ex\u00adample.com/",
        "https://%61pi.example.com/",
        "https://2130706433/",
        "https://[::1]/",
        "https://[api.example.com]/",
        "https://[::1",
        "",
    ],
)
def test_a_url_grant_for_a_host_does_not_allow_a_longer_name_or_another_host_G2(url):
    assert not url_allowed(["https://api.example.com/*"], url)


@pytest.mark.parametrize(
    ("pattern", "allowed", "denied"),
    [
        ("*", ["https://a.b/", "ftp://x:1/y", "http://2130706433/"], []),
        ("api.example.com", ["http://api.example.com/a", "https://api.example.com"],
         ["http://api.example.com:8080/", "ftp://api.example.com/"]),
        ("*.example.com", ["https://a.example.com/", "https://a.b.example.com/x"],
         ["https://example.com/", "https://badexample.com/", "https://.example.com/",
          "https://a.example.com.evil.org/"]),
        ("https://*/*", ["https://any.host/x"], ["http://any.host/x"]),
        ("*://api.example.com/*", ["http://api.example.com/", "wss://api.example.com/"],
         ["http://evil.org/", "http://api.example.com:81/"]),
        ("http://localhost:*", ["http://localhost:3000/x", "http://localhost/"],
         ["https://localhost.evil.org:3000/", "https://localhost:3000/"]),
        ("http://localhost:8080/*", ["http://localhost:8080/"], ["http://localhost/"]),
        ("https://h.x/v1/users", ["https://h.x/v1/users", "https://h.x/v1/users?q=1"],
         ["https://h.x/v1/users/2", "https://h.x/v1/usersX", "https://h.x/"]),
        ("https://h.x/", ["https://h.x", "https://h.x/"], ["https://h.x/a"]),
        ("https://h.x/a?key=*", ["https://h.x/a?key=1"], ["https://h.x/a?other=1", "https://h.x/a"]),
        ("http://[::1]:80/*", ["http://[::1]/x", "http://[0:0:0:0:0:0:0:1]/x"],
         ["http://[::2]/x", "http://127.0.0.1/x", "http://[::1]:81/", "http://[::1%25eth0]/"]),
        ("http://127.0.0.1/*", ["http://127.0.0.1/"],
         ["http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://[::ffff:127.0.0.1]/"]),
    ],
)  # fmt: skip
def test_every_form_of_url_pattern_G2(pattern, allowed, denied):
    assert understands_url_pattern(pattern)
    assert [url for url in allowed if not url_allowed([pattern], url)] == []
    assert [url for url in denied if url_allowed([pattern], url)] == []


@pytest.mark.parametrize(
    "url",
    [
        "https://h.x/public/../admin",
        "https://h.x/public/%2e%2e/admin",
        "https://h.x/public/.%2E/admin",
        "https://h.x/public/%252e%252e/admin",
        "https://h.x/public/..%2fadmin",
        "https://h.x/public/..%5cadmin",
        "https://h.x/public/..;/admin",
        "https://h.x/public//../admin",
        "https://h.x/public/x/../../admin",
        "https://h.x/publicity/x",
        "https://h.x/Public/x",
    ],
)
def test_a_grant_for_a_path_cannot_be_left_G2(url):
    assert not url_allowed(["https://h.x/public/*"], url)


def test_a_grant_for_a_path_allows_what_is_below_however_it_is_spelt():
    for path in ("x", "./x", "a/../x", "%78", "a%20b", "..x", "x..", "", "a//b"):
        assert url_allowed(["https://h.x/public/*"], f"https://h.x/public/{path}"), path


@pytest.mark.parametrize(
    "pattern",
    ["", " ", "https://", "https://user@h/*", "api.*.com", "https://[x]/", "a b", "https://höst/"],
)
def test_a_pattern_that_is_not_understood_allows_nothing(pattern):
    assert not understands_url_pattern(pattern)
    assert not url_allowed([pattern], "https://api.x.com/")


def test_a_path_grant_for_data_does_not_allow_data_secret_G1(tmp_path):
    data = tmp_path / "data"
    assert path_allowed(tmp_path, [str(data)], data)
    assert path_allowed(tmp_path, [str(data)], data / "a" / "b.txt")
    assert path_allowed(tmp_path, [f"{data}/"], data / "a")
    assert not path_allowed(tmp_path, [str(data)], tmp_path / "data-secret" / "a")
    assert not path_allowed(tmp_path, [str(data)], tmp_path)


def test_a_path_grant_for_data_does_not_allow_data_dotdot_etc_G1(tmp_path):
    data = tmp_path / "data"
    for path in (f"{data}/../etc", f"{data}/x/../../etc/passwd", f"{data}/./../data-secret"):
        assert not path_allowed(tmp_path, [str(data)], path)
    assert path_allowed(tmp_path, [str(data)], f"{data}/x/../y")


def test_relative_paths_are_of_the_plugins_folder(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    for grant in ("./storage", "storage", "storage/", "./storage/*", "./storage/**"):
        assert path_allowed(tmp_path, [grant], "storage/x")
        assert path_allowed(tmp_path, [grant], tmp_path / "storage" / "x")
        assert not path_allowed(tmp_path, [grant], "other/x")
        assert not path_allowed(tmp_path, [grant], "../storage/x")
        assert not path_allowed(tmp_path, [grant], "/storage/x")
    assert path_allowed(tmp_path, ["."], "anything")
    assert not path_allowed(tmp_path, ["."], "../anything")
    assert path_allowed(tmp_path, ["*"], "/etc/passwd")
    assert path_allowed(tmp_path, ["/*"], "/etc/passwd")


@needs_symlinks
def test_symbolic_links_are_followed_before_the_rule_is_applied_G1(tmp_path):
    folder, outside = tmp_path / "plugin", tmp_path / "outside"
    (folder / "storage").mkdir(parents=True)
    outside.mkdir()
    (folder / "storage" / "out").symlink_to(outside)
    (folder / "storage" / "in").symlink_to(folder / "storage")
    (folder / "link").symlink_to(outside)
    assert not path_allowed(folder, ["storage"], "storage/out/secret")
    assert not path_allowed(folder, ["storage"], "storage/out/../plugin/other")
    assert path_allowed(folder, ["storage"], "storage/in/x")
    assert path_allowed(folder, ["link"], outside / "x")  # a granted link grants its target
    (folder / "storage" / "loop").symlink_to(folder / "storage" / "loop")
    assert not path_allowed(folder, ["storage"], "storage/loop/../../x")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_paths_through_proc_are_followed_G1(tmp_path):
    assert not path_allowed(tmp_path, ["/proc"], "/proc/self/root/etc/passwd")
    assert not path_allowed(tmp_path, [str(tmp_path)], f"/proc/self/root{tmp_path.parent}")
    descriptor = os.open("/", os.O_RDONLY)
    try:
        assert not path_allowed(tmp_path, ["/proc"], f"/proc/self/fd/{descriptor}/etc")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("path", ["", "storage/a\0b", "\0", "storage/\ud800"])
def test_a_path_that_names_nothing_is_denied(tmp_path, path):
    assert not path_allowed(tmp_path, [".", "*"], path)
    with pytest.raises(PermissionDenied) as caught:
        check(Permissions(filesystem=(".",)), tmp_path, "filesystem", path)
    assert str(caught.value).isprintable()


def test_names_are_compared_whole(tmp_path):
    permissions = Permissions(env=("API_KEY",), database=("main",), scope=frozenset({"read"}))
    allowed = [("env", "API_KEY"), ("database", "main"), ("scope", "read")]
    denied = [
        ("env", "API_KEY_2"), ("env", "API"), ("env", ""), ("env", "*"),
        ("database", "mai"), ("database", "main2"), ("scope", "write"), ("scope", "*"),
    ]  # fmt: skip
    assert all(allows(permissions, tmp_path, *pair) for pair in allowed)
    assert not any(allows(permissions, tmp_path, *pair) for pair in denied)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "DYLD_X"])
def test_variables_that_load_code_pass_only_by_their_own_name_G3(tmp_path, name):
    assert allows(Permissions(env=("*",)), tmp_path, "env", "HOME")
    assert not allows(Permissions(env=("*",)), tmp_path, "env", name)
    assert allows(Permissions(env=("*", name)), tmp_path, "env", name)


@pytest.mark.parametrize(
    ("kind", "resource", "line"),
    [
        ("network", "https://API.x.com:8443/v1?q", 'network: ["https://api.x.com:8443/*"]'),
        ("network", "http://[0::1]/", 'network: ["http://[::1]/*"]'),
        ("filesystem", "a/../storage/x", 'filesystem: ["./storage/x"]'),
        ("filesystem", "/etc/hostname", 'filesystem: ["/etc/hostname"]'),
        ("env", "HOME", 'env: ["HOME"]'),
        ("database", "main", 'database: ["main"]'),
        ("scope", "write", 'scope: ["write"]'),
    ],
)
def test_a_denial_names_the_line_that_would_allow_it_G7(tmp_path, kind, resource, line):
    with pytest.raises(PermissionDenied) as caught:
        check(Permissions(), tmp_path, kind, resource, plugin="my-plugin")
    message = str(caught.value)
    assert f"`{line}`" in message
    assert "'my-plugin'" in message
    assert str(tmp_path / "manifest.yaml") in message
    suggested = line.split('"')[1]
    granted = frozenset({suggested}) if kind == "scope" else (suggested,)
    check(Permissions(**{kind: granted}), tmp_path, kind, resource)


def test_no_pattern_and_no_name_takes_long_to_look_at(tmp_path: Path) -> None:
    many = Permissions(network=("https://x.com/" + "*a" * 30 + "*b",), filesystem=("data",))
    begun = time.monotonic()
    assert not allows(many, tmp_path, "network", "https://x.com/" + "a" * 60_000)
    assert not allows(many, tmp_path, "network", "https://x.com/" + "a" * 10_000_000 + "b")
    assert not allows(many, tmp_path, "filesystem", "a/" * 1_000_000)
    assert time.monotonic() - begun < 5
    assert allows(many, tmp_path, "network", "https://x.com/" + "a" * 30 + "b")
    assert not allows(many, tmp_path, "network", "https://x.com/" + "a" * 29 + "b")


@needs_symlinks
def test_a_grant_within_another_is_not_followed_to_where_the_plugin_made_it_lead(tmp_path: Path):
    secret, folder = tmp_path / "secret", tmp_path / "plugin"
    secret.mkdir()
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "sub").symlink_to(secret)
    for inner in ("./data/sub", "data/sub/*", str(folder / "data" / "sub")):
        assert not path_allowed(folder, ["./data", inner], secret / "file")
        assert path_allowed(folder, ["./data", inner], folder / "data" / "file")
    assert path_allowed(folder, ["./data/sub"], secret / "file")  # nobody could change that one
    assert path_allowed(folder, ["./data", "./database"], folder / "database" / "file")


@pytest.mark.parametrize(
    ("kind", "old", "new", "more"),
    [
        ("network", ["*"], ["https://a.example/*", "*"], []),
        ("network", ["https://a.example/*"], ["https://a.example/*"], []),
        ("network", ["https://a.example/*"], ["https://a.example/v1/*"], []),
        ("network", ["https://a.example"], ["https://a.example:443/x?y=*"], []),
        ("network", ["https://a.example:443"], ["https://a.example"], []),
        ("network", ["a.example"], ["https://a.example", "ws://a.example:80"], []),
        ("network", ["*.example"], ["https://b.a.example", "*.a.example"], []),
        ("network", ["https://a.example/v1/*"], ["https://a.example/v1/u?id=*"], []),
        ("network", ["https://a.example/v1/*?id=*"], ["https://a.example/v1/u?id=1"], []),
        ("network", ["https://a.example/v*/u"], ["https://a.example/v1/x/u"], []),
        ("network", [], ["https://a.example"], ["https://a.example"]),
        ("network", ["https://a.example"], ["*"], ["*"]),
        ("network", ["https://a.example"], ["a.example"], ["a.example"]),
        ("network", ["https://a.example"], ["http://a.example"], ["http://a.example"]),
        ("network", ["https://a.example"], ["https://a.example:8443"], ["https://a.example:8443"]),
        ("network", ["*.example"], ["https://example"], ["https://example"]),
        ("network", ["https://a.example"], ["https://*.a.example"], ["https://*.a.example"]),
        ("network", ["https://a.example/v1/*"], ["https://a.example/*"], ["https://a.example/*"]),
        ("network", ["https://a.example/v1"], ["https://a.example/v*"], ["https://a.example/v*"]),
        (
            "network",
            ["https://a.example/v?id=*"],
            ["https://a.example/v"],
            ["https://a.example/v"],
        ),
        (
            "network",
            ["https://a.example/a*b"],
            ["https://a.example/a*b?c"],
            ["https://a.example/a*b?c"],
        ),
        ("filesystem", ["./data"], ["./data/*", "data/sub", "./data/../data"], []),
        ("filesystem", ["*"], ["/etc", "*"], []),
        ("filesystem", ["./data"], ["./data-secret"], ["./data-secret"]),
        ("filesystem", ["./data/sub"], ["./data"], ["./data"]),
        ("filesystem", ["./data"], ["./data/../etc"], ["./data/../etc"]),
        ("filesystem", ["./data"], ["./data/out"], ["./data/out"]),
        ("filesystem", ["./data"], ["*"], ["*"]),
        ("env", ["A", "B"], ["B"], []),
        ("env", ["*"], ["A", "*"], []),
        ("env", ["*"], ["LD_PRELOAD"], ["LD_PRELOAD"]),
        ("env", ["A"], ["A", "B", "*"], ["B", "*"]),
        ("database", ["*"], ["main"], []),
        ("database", ["main"], ["main", "other"], ["other"]),
        ("database", ["main"], ["*"], ["*"]),
        ("scope", ["read", "write"], ["read"], []),
        ("scope", ["read"], ["read", "write"], ["write"]),
    ],
)
def test_R6_what_new_permissions_allow_beyond_the_old_ones(tmp_path, kind, old, new, more):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out").symlink_to("/etc")
    kept = frozenset if kind == "scope" else tuple
    found = widened(Permissions(**{kind: kept(old)}), Permissions(**{kind: kept(new)}), tmp_path)
    assert found == ({kind: tuple(more)} if more else {})


def test_R6_a_pattern_that_passes_allows_no_url_that_the_old_ones_do_not(tmp_path):
    random = Random(6)

    def pattern() -> str:
        scheme = random.choice(["", "", "https://", "http://", "ws://", "*://", "ftp://"])
        host = random.choice(["a.b", "b", "*.b", "*", "x.a.b", "*.a.b", "[::1]"])
        port = random.choice(["", "", ":80", ":443", ":*"])
        path = "".join(random.choices(["/", "a", "b", "*", "?", "/*"], k=random.randrange(5)))
        return scheme + host + port + (f"/{path}" if path else "")

    urls = [
        f"{scheme}://{host}{port}/{path}"
        for scheme in ("https", "http", "ws", "ftp")
        for host in ("a.b", "b", "x.a.b", "y.b", "[::1]")
        for port in ("", ":80", ":443", ":8080")
        for path in ("", "a", "ab", "a/b", "a?b", "ab?ab", "?", "b/a?a")
    ]
    compared = 0
    for _ in range(6000):
        old, new = pattern(), pattern()
        if not widened(Permissions((old,)), Permissions((new,)), tmp_path):
            compared += 1
            for url in urls:
                assert url_allowed([old], url) or not url_allowed([new], url), (old, new, url)
    assert compared > 100
