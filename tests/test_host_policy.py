"""The host policy: which guest paths the host may answer for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysroot_fs.tree.host import HostPolicy

paths = st.lists(st.sampled_from([b"a", b"b", b"etc", b"lib", b"usr", b"var"]), max_size=5).map(
    lambda names: b"/" + b"/".join(names)
)
prefixes = st.lists(paths, max_size=4).map(tuple)


@given(paths)
def test_all_opens_everything(path: bytes) -> None:
    """By default any path may fall back, and the path need not even be known."""
    policy = HostPolicy()
    assert policy.trivial and not policy.shuts_all
    assert policy.allows(path) and not policy.shuts_below(path)


@given(paths)
def test_none_shuts_everything(path: bytes) -> None:
    """With `none` and no exception nothing falls back."""
    policy = HostPolicy("none")
    assert policy.shuts_all and not policy.trivial
    assert not policy.allows(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/usr/lib/x", b"/bin/sh", b"/sbin/init", b"/opt/x", b"/boot/x", b"/run/x", b"/srv/x",
        b"/lib/x", b"/lib64/x", b"/lib32", b"/libexec/x", b"/var/lib/x", b"/var/log", b"/var/x",
        b"/etc/passwd", b"/etc/shadow", b"/etc/ssl/certs", b"/etc/hosts.allow", b"/usr",
    ],
)  # fmt: skip
def test_safe_shuts_the_guests_own_system(path: bytes) -> None:
    """A hole in the guest's system is not filled by the host's."""
    assert not HostPolicy("safe").allows(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/home/me/x", b"/tmp/x", b"/root", b"/mnt/x", b"/var/folders/x/y", b"/var/tmp/x",
        b"/etc/resolv.conf", b"/etc/hosts", b"/etc/hostname", b"/etc/localtime", b"/work/usr/lib",
        b"/var", b"/etc", b"/home/lib", b"/usrlocal",
    ],
)  # fmt: skip
def test_safe_opens_the_users_places_and_the_ways_there(path: bytes) -> None:
    """Homes, temporary places and four files of /etc fall back; their parents can be entered."""
    assert HostPolicy("safe").allows(path)


@pytest.mark.parametrize(
    ("path", "open_"),
    [
        (b"/a", False),
        (b"/a/b", True),
        (b"/a/b/x", True),
        (b"/a/b/c", False),
        (b"/a/b/c/x", False),
        (b"/a/b/c/d", True),
        (b"/a/b/c/d/x", True),
        (b"/a/bc", False),
        (b"/x", True),
    ],
)
def test_the_longest_prefix_decides(path: bytes, open_: bool) -> None:
    """Prefixes are of whole components, and a longer one beats a shorter one."""
    policy = HostPolicy(allow=(b"/a/b", b"/a/b/c/d"), deny=(b"/a", b"/a/b/c"))
    ways = path in (b"/a", b"/a/b/c")
    assert policy.allows(path) is (open_ or ways)


def test_the_way_to_an_allowed_place_is_open_and_nothing_beside_it() -> None:
    """The parents of an allowed prefix can be entered; what else lies in them stays shut."""
    policy = HostPolicy("none", allow=(b"/a/b/c",))
    assert not policy.shuts_all
    for path in (b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/d"):
        assert policy.allows(path)
    for path in (b"/", b"/b", b"/a/x", b"/a/b/x", b"/a/b/cd"):
        assert not policy.allows(path)


def test_a_way_leads_through_what_is_denied_and_safe() -> None:
    """An allowed place below a denied one, or below /lib under `safe`, can be reached."""
    policy = HostPolicy("safe", allow=(b"/lib/modules", b"/usr/share/zoneinfo"))
    for path in (b"/lib", b"/lib/modules/x", b"/usr", b"/usr/share", b"/usr/share/zoneinfo/UTC"):
        assert policy.allows(path)
    for path in (b"/lib/x", b"/lib64", b"/usr/lib", b"/usr/share/doc"):
        assert not policy.allows(path)


def test_prefixes_may_be_written_in_any_way() -> None:
    """Slashes at the end, doubled or missing at the front mean the same."""
    policy = HostPolicy(deny=(b"//a//b/", b"c"))
    for path in (b"/a/b", b"/a/b/", b"/a//b/x", b"/c", b"/c/x"):
        assert not policy.allows(path)
    assert policy.allows(b"/a")


def test_the_root_is_a_prefix_as_any_other() -> None:
    """Denying `/` shuts all but what is allowed; allowing it opens all but what is denied."""
    shut = HostPolicy(deny=(b"/",), allow=(b"/a",))
    assert shut.allows(b"/a/x") and not shut.allows(b"/b")
    opened = HostPolicy("none", allow=(b"/",), deny=(b"/b",))
    assert opened.allows(b"/a/x") and not opened.allows(b"/b")


def test_deny_wins_over_allow_of_the_same_prefix() -> None:
    """In doubt the host stays out."""
    assert not HostPolicy(allow=(b"/a",), deny=(b"/a",)).allows(b"/a")


def test_only_the_plain_default_is_trivial() -> None:
    """The path of a lookup must be known as soon as one prefix is shut."""
    assert HostPolicy(allow=(b"/a",)).trivial
    assert not HostPolicy(deny=(b"/a",)).trivial
    assert not HostPolicy("safe").trivial


def test_what_holds_a_shut_place_must_not_be_moved() -> None:
    """`shuts_below` sees a denied prefix at any depth, and none beside it."""
    policy = HostPolicy(deny=(b"/home/me/private/keys",))
    for path in (b"/home", b"/home/me", b"/home/me/private"):
        assert policy.shuts_below(path)
    for path in (b"/home/you", b"/tmp", b"/home/me/public"):
        assert not policy.shuts_below(path)


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        (HostPolicy("safe"), b"/etc"),
        (HostPolicy("safe"), b"/var"),
        (HostPolicy("none", allow=(b"/a/b/c", b"/d")), b"/a"),
        (HostPolicy("none", allow=(b"/a/b/c", b"/d")), b"/a/b"),
        (HostPolicy("safe", allow=(b"/lib/modules",)), b"/lib"),
    ],
)
def test_a_way_must_not_be_moved(policy: HostPolicy, path: bytes) -> None:
    """A directory that is open only as the way somewhere is shut but for that."""
    assert policy.allows(path) and policy.shuts_below(path)


@given(st.sampled_from(["all", "safe", "none"]), prefixes, prefixes, paths, paths)
def test_what_may_be_moved_holds_nothing_shut(
    fallback: str, allow: tuple[bytes, ...], deny: tuple[bytes, ...], path: bytes, below: bytes
) -> None:
    """Where `shuts_below` says no, every path below may fall back."""
    policy = HostPolicy(fallback, allow, deny)
    if path != b"/" and not policy.shuts_below(path):
        assert policy.allows(path + below)


@given(st.sampled_from(["all", "safe", "none"]), prefixes, prefixes, paths)
def test_an_open_path_has_open_parents(
    fallback: str, allow: tuple[bytes, ...], deny: tuple[bytes, ...], path: bytes
) -> None:
    """No place is open and out of reach, whatever the prefixes are."""
    policy = HostPolicy(fallback, allow, deny)
    parent = path.rpartition(b"/")[0]
    if path in allow and path not in deny:
        assert policy.allows(path)
        assert parent == b"" or policy.allows(parent)
