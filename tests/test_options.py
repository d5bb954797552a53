"""The table of mount options: every name, every kind of value, and what is said about bad ones."""

import argparse
import os

import pytest

from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.mount import mount_options
from sysroot_fs.cli.options import (
    BY_NAME,
    IGNORED_PREFIX,
    OPTIONS,
    Group,
    Kind,
    Settings,
    add_options,
    collect,
    describe,
    idle,
    split_options,
)
from sysroot_fs.fuse.serve import escaped, libfuse_words


def parsed(text: str, privileged: bool = False) -> Settings:
    return collect(split_options(text), privileged)


GOOD = [
    ("allow_other", "allow_other", True),
    ("ro", "read_only", True),
    ("ro,rw", "read_only", False),
    ("suid", "suid", True),
    ("suid,nosuid", "suid", False),
    ("dev", "dev", True),
    ("dev,nodev", "dev", False),
    ("noexec", "exec", False),
    ("noexec,exec", "exec", True),
    ("noatime", "noatime", True),
    ("noatime,relatime", "noatime", False),
    ("fsname=guest", "fsname", b"guest"),
    ("subtype=other", "subtype", b"other"),
    ("entry_timeout=0", "entry_timeout", 0.0),
    ("attr_timeout=2.5", "attr_timeout", 2.5),
    ("coherence=exclusive", "coherence", "exclusive"),
    ("host_coherence=none", "host_coherence", "none"),
    ("negative_timeout=1e3", "negative_timeout", 1000.0),
    ("auto_unmount", "auto_unmount", True),
    ("max_read=131072", "max_read", 131072),
    ("host=/srv/host", "host", b"/srv/host"),
    ("fallback=all", "fallback", "all"),
    ("fallback=safe", "fallback", "safe"),
    ("fallback=none", "fallback", "none"),
    ("allow=/a", "allow", (b"/a",)),
    ("deny=/a:/b//c/", "deny", (b"/a", b"/b/c")),
    ("deny=/a,deny=/b", "deny", (b"/a", b"/b")),
    ("host_writes=rw", "host_writes", "rw"),
    ("host_writes=ro", "host_writes", "ro"),
    ("listing=sysroot", "listing", "sysroot"),
    ("listing=union", "listing", "union"),
    ("names=natural", "names", "natural"),
    ("names=portable", "names", "portable"),
    ("lookup=exact", "lookup", "exact"),
    ("lookup=fold", "lookup", "fold"),
    ("fold=/sdk:/games", "fold", (b"/sdk", b"/games")),
    ("exact=/sdk/bin", "exact", (b"/sdk/bin",)),
    ("fold_key=ascii", "fold_key", "ascii"),
    ("merge", "merge", True),
    ("log=/var/log/guest", "log", b"/var/log/guest"),
    ("door=pyfuse3", "door", "pyfuse3"),
    ("opens=passthrough", "opens", "passthrough"),
    ("writes=back", "writes", "back"),
    ("locks", "locks", True),
    ("uring=on", "uring", "on"),
    ("awake=off", "awake", "off"),
]


@pytest.mark.parametrize(("text", "field", "value"), GOOD)
def test_accepted(text: str, field: str, value: object) -> None:
    """Each option sets its field, and a later one overrules an earlier one."""
    assert getattr(parsed(text), field) == value


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("merge,fold_key=ascii,exact=/a", ["merge", "fold_key", "exact"]),
        ("merge,fold_key=ascii,exact=/a,lookup=fold", []),
        ("merge,fold=/a", []),
        ("fold_key=unicode", []),
        ("ro", []),
    ],
)
def test_idle(text: str, names: list[str]) -> None:
    """Options that say how lookups fold are named where none does."""
    assert [told.split()[0] for told in idle(parsed(text))] == names


def test_every_option_is_tried() -> None:
    """No row of the table is without a case above or below."""
    tried = {name for text, _, _ in GOOD for name, _ in split_options(text)}
    ignored = {option.name for option in OPTIONS if option.kind is Kind.IGNORED}
    assert tried | ignored | {"default_permissions"} == set(BY_NAME)


def test_names_are_unique() -> None:
    """A name stands in the table once, and each row that sets a field sets one that exists."""
    assert len(BY_NAME) == len(OPTIONS)
    for option in OPTIONS:
        assert option.sets is None or hasattr(Settings(), option.sets)


@pytest.mark.parametrize(
    "text",
    [
        "_netdev",
        "nofail",
        "defaults",
        "user",
        "users",
        "auto",
        "noauto",
        "x-systemd.automount",
        "x-gvfs-name=a",
        "default_permissions",
        "rw",
        "exec",
        "relatime",
    ],
)
def test_changes_nothing(text: str) -> None:
    """What is for others, and what is so anyway, is accepted and changes nothing."""
    assert parsed(text) == Settings()


def test_empty_parts() -> None:
    """Empty parts between commas are passed over, as mount(8) does."""
    assert split_options(",ro,,noatime,") == [("ro", None), ("noatime", None)]
    assert split_options("") == []


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (r"fsname=a\,b,ro", [("fsname", "a,b"), ("ro", None)]),
        (r"fsname=a\\,ro", [("fsname", "a\\"), ("ro", None)]),
        (r"fsname=a\\\,b", [("fsname", "a\\,b")]),
        (r"fsname=a\nb", [("fsname", r"a\nb")]),
        ("fsname=a\\", [("fsname", "a\\")]),
        ("fsname=a=b", [("fsname", "a=b")]),
    ],
)
def test_commas_are_escaped(text: str, pairs: list[tuple[str, str | None]]) -> None:
    r"""`\,` is a comma in a value and `\\` a backslash; any other backslash is itself."""
    assert split_options(text) == pairs


def test_colons_are_escaped() -> None:
    r"""In a list of prefixes `\:` is a colon."""
    assert collect([("allow", r"/a\:b:/c")], False).allow == (b"/a:b", b"/c")


def test_bytes_survive() -> None:
    """A value that is not UTF-8 keeps its bytes."""
    assert collect([("fsname", os.fsdecode(b"a\xff"))], False).fsname == b"a\xff"


def test_relative_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    """A relative host or log is made absolute at once: a daemon changes its directory."""
    monkeypatch.chdir(tmp_path)
    here = os.fsencode(tmp_path)
    assert parsed("host=sub").host == here + b"/sub"
    assert parsed("log=./x").log == here + b"/x"


@pytest.mark.parametrize("name", ["fallbak", "fallback ", "host-writes", "allowother", "zzz", "="])
def test_unknown(name: str) -> None:
    """An unknown option is an error that names it."""
    with pytest.raises(UsageError) as caught:
        collect([(name, None)], False)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("fallbak", "fallback"), ("host-writes", "host_writes"), ("allowother", "allow_other")],
)
def test_suggestion(name: str, meant: str) -> None:
    """Where a known name is close, it is suggested."""
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        collect([(name, None)], False)


@pytest.mark.parametrize(
    "text",
    [
        "ro=1",
        "host",
        "host=",
        "fsname=",
        "fallback=some",
        "fallback=",
        "fallback",
        "host_writes=cow",
        "lookup=Exact",
        "entry_timeout=-1",
        "entry_timeout=nan",
        "entry_timeout=inf",
        "attr_timeout=soon",
        "negative_timeout",
        "max_read=0",
        "max_read=-4096",
        "max_read=4k",
        "max_read=1_0",
        "max_read=99999999999999999999999",
        "allow=relative",
        "allow=/a::/b",
        "deny=/a/../b",
    ],
)
def test_bad_values(text: str) -> None:
    """A bad value is an error that names the option, in one sentence."""
    with pytest.raises(UsageError) as caught:
        parsed(text)
    assert text.split("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["host_writes=cow"])
def test_planned_values(text: str) -> None:
    """What is planned but not built says so, instead of being unknown."""
    with pytest.raises(UsageError, match="not built yet"):
        parsed(text)


def test_root_defaults() -> None:
    """Root mounts a guest root: set-id bits, devices and every user, unless told otherwise."""
    root, user = parsed("", privileged=True), parsed("")
    assert (root.suid, root.dev, root.allow_other) == (True, True, True)
    assert (user.suid, user.dev, user.allow_other) == (False, False, False)
    assert not parsed("nosuid", privileged=True).suid


def test_long_options_and_o_share_an_order() -> None:
    """The last one on the command line wins, whichever way each was written."""
    parser = argparse.ArgumentParser()
    add_options(parser, Group)
    arguments = parser.parse_args(
        ["--fallback", "safe", "-o", "fallback=none,ro", "-orw", "--fallback=all"]
    )
    settings = collect(arguments.settings, False)
    assert (settings.fallback, settings.read_only) == ("all", False)


def test_long_values_are_not_cut() -> None:
    """The value of a long option is taken as it is, commas and all."""
    parser = argparse.ArgumentParser()
    add_options(parser, Group)
    arguments = parser.parse_args(["--host", "/a,b\\c"])
    assert collect(arguments.settings, False).host == b"/a,b\\c"


def test_help_names_every_option() -> None:
    """The help text has every row, and no line that is wider than a page."""
    text = describe()
    for option in OPTIONS:
        assert option.usage in text
    assert IGNORED_PREFIX in text
    assert max(map(len, text.splitlines())) <= 100


def test_fuse_options_by_default() -> None:
    """libfuse is always given the source, the type, and default_permissions."""
    assert libfuse_words(mount_options(Settings(), b"/guest")) == [
        "fsname=/guest",
        "subtype=sysroot",
        "default_permissions",
        "nosuid",
        "nodev",
    ]


def test_fuse_options_that_are_set() -> None:
    """Each option of the mount itself reaches libfuse, none of the tree's does, nor max_read."""
    settings = parsed(
        "suid,dev,noexec,noatime,ro,allow_other,auto_unmount,max_read=4096,fsname=x,"
        "subtype=y,fallback=safe,host=/h,entry_timeout=3"
    )
    assert libfuse_words(mount_options(settings, b"/guest")) == [
        "fsname=x",
        "subtype=y",
        "default_permissions",
        "suid",
        "dev",
        "noexec",
        "noatime",
        "ro",
        "allow_other",
        "auto_unmount",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"/plain-path_1.0", "/plain-path_1.0"),
        (b"a,b", r"a\054b"),
        (b"a\\b", r"a\134b"),
        (b"a b", r"a\040b"),
        ("é".encode(), r"\303\251"),
        (b"\xff\x7f", r"\377\177"),
    ],
)
def test_escaped_for_libfuse(value: bytes, text: str) -> None:
    """What libfuse would take apart, or pyfuse3 could not encode, goes as octal bytes."""
    assert escaped(value) == text
