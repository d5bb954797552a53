"""The contract, seen through the mount: which layer answers, and where changes go."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import pytest

from sidecar import linux
from tests.children import code_of, in_child, start_child
from tests.mounts import Mount, Mounter

FRESH: Final = ("entry_timeout=0", "attr_timeout=0", "negative_timeout=0")
USER: Final = 1000


def fill(top: Path, **files: str) -> None:
    """Write files below *top*; two underscores in a name stand for a slash."""
    for name, content in files.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def exchange(old: Path, new: Path) -> None:
    linux.renameat2(
        linux.AT_FDCWD,
        os.fsencode(old),
        linux.AT_FDCWD,
        os.fsencode(new),
        linux.RENAME_EXCHANGE,
    )


# --- the seven cases of the host fallback -------------------------------------------------------


def test_read_through_missing_intermediates(mounted: Mounter) -> None:
    """Where the sysroot has only /var, what is below it comes from the host."""
    mount = mounted()
    fill(mount.host, var__folders__x__f="host")
    (mount.sysroot / "var").mkdir()
    assert (mount.point / "var/folders/x/f").read_text() == "host"
    assert os.listdir(mount.point / "var/folders") == ["x"]
    assert os.listdir(mount.point / "var") == []


def test_stat_is_the_hosts_own(mounted: Mounter) -> None:
    """Type, mode, owner, size and times of a host entry are those on the host."""
    mount = mounted()
    fill(mount.host, d__f="content")
    os.chown(mount.host / "d/f", 12, 34)
    (mount.host / "d/f").chmod(0o4751)
    (mount.host / "d/l").symlink_to("f")
    for name in ("d", "d/f", "d/l"):
        seen, below = (mount.point / name).lstat(), (mount.host / name).lstat()
        for field in ("mode", "uid", "gid", "size", "mtime_ns", "ctime_ns", "nlink"):
            assert getattr(seen, f"st_{field}") == getattr(below, f"st_{field}")
    assert (mount.point / "d/l").read_text() == "content"


def test_create_write_and_unlink_on_the_host(mounted: Mounter) -> None:
    """Below a directory that only the host has, files are made, written and removed there."""
    mount = mounted()
    (mount.host / "tmp").mkdir()
    fill(mount.point, tmp__f="one")
    assert (mount.host / "tmp/f").read_text() == "one"
    assert not (mount.sysroot / "tmp").exists()
    with open(mount.point / "tmp/f", "a") as file:
        file.write(" two")
    assert (mount.host / "tmp/f").read_text() == "one two"
    os.unlink(mount.point / "tmp/f")
    assert os.listdir(mount.host / "tmp") == []


def test_mkdir_and_rmdir_on_the_host(mounted: Mounter) -> None:
    """Directories below a host directory are the host's."""
    mount = mounted()
    (mount.host / "tmp").mkdir()
    (mount.point / "tmp/d/e").mkdir(parents=True)
    assert (mount.host / "tmp/d/e").is_dir()
    assert code_of(os.rmdir, mount.point / "tmp/d") == errno.ENOTEMPTY
    os.rmdir(mount.point / "tmp/d/e")
    os.rmdir(mount.point / "tmp/d")
    assert os.listdir(mount.host / "tmp") == []
    assert os.listdir(mount.sysroot) == []


def test_rename_on_host_paths(mounted: Mounter) -> None:
    """Both sides on the host: the host's own rename, files and directories."""
    mount = mounted()
    fill(mount.host, tmp__a="a", tmp__d__f="f", other__x="x")
    os.rename(mount.point / "tmp/a", mount.point / "other/b")
    os.rename(mount.point / "tmp/d", mount.point / "other/e")
    assert sorted(os.listdir(mount.host / "other")) == ["b", "e", "x"]
    assert (mount.point / "other/e/f").read_text() == "f"
    assert os.listdir(mount.host / "tmp") == []


def test_missing_final_component(mounted: Mounter) -> None:
    """Where the sysroot has /etc but no resolv.conf, it is the host's; a new name is not."""
    mount = mounted()
    fill(mount.host, etc__resolv="host")
    fill(mount.sysroot, etc__passwd="guest")
    assert (mount.point / "etc/resolv").read_text() == "host"
    assert os.listdir(mount.point / "etc") == ["passwd"]
    fill(mount.point, etc__new="guest")
    assert (mount.sysroot / "etc/new").read_text() == "guest"
    assert not (mount.host / "etc/new").exists()
    # It exists, on whichever layer.
    assert code_of(os.mkdir, mount.point / "etc/resolv") == errno.EEXIST
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    assert code_of(os.open, mount.point / "etc/resolv", flags) == errno.EEXIST


def test_sysroot_over_host(mounted: Mounter) -> None:
    """Where both have the path the sysroot's entry is seen, whatever its type."""
    mount = mounted()
    fill(mount.host, f="host", d__only="host", dir__x="host")
    fill(mount.sysroot, f="guest", d__mine="guest", dir="a file in the guest")
    assert (mount.point / "f").read_text() == "guest"
    assert (mount.point / "dir").is_file()
    assert code_of(os.stat, mount.point / "dir/x") == errno.ENOTDIR
    assert (mount.point / "d/only").read_text() == "host"
    (mount.point / "f").write_text("changed")
    assert ((mount.host / "f").read_text(), (mount.sysroot / "f").read_text()) == (
        "host",
        "changed",
    )


# --- mutations over two layers ------------------------------------------------------------------


def test_writing_a_file_that_fell_back_writes_the_hosts(mounted: Mounter) -> None:
    """An existing entry is changed where it is: content, mode, times, xattrs."""
    mount = mounted()
    fill(mount.host, etc__conf="host")
    (mount.sysroot / "etc").mkdir()
    file = mount.point / "etc/conf"
    file.write_text("written")
    file.chmod(0o640)
    os.utime(file, ns=(1, 2))
    os.setxattr(file, b"user.x", b"y")
    below = mount.host / "etc/conf"
    assert below.read_text() == "written"
    assert (stat.S_IMODE(below.stat().st_mode), below.stat().st_mtime_ns) == (0o640, 2)
    assert os.getxattr(below, b"user.x") == b"y"
    os.unlink(file)
    assert not below.exists()


def test_rename_shadows_the_hosts_entry(mounted: Mounter) -> None:
    """A rename onto a name that only the host has goes into the sysroot; the host's stays."""
    mount = mounted()
    fill(mount.host, etc__conf="host")
    fill(mount.sysroot, etc__new="guest")
    assert (mount.point / "etc/conf").read_text() == "host"
    os.rename(mount.point / "etc/new", mount.point / "etc/conf")
    assert (mount.point / "etc/conf").read_text() == "guest"
    assert (mount.host / "etc/conf").read_text() == "host"
    assert (mount.sysroot / "etc/conf").read_text() == "guest"


def test_shadowing_keeps_rename_s_errnos(mounted: Mounter) -> None:
    """A host directory that is full, or of another type, is refused as rename(2) does."""
    mount = mounted()
    fill(mount.host, full__x="", f="")
    (mount.host / "empty").mkdir()
    fill(mount.sysroot, file="")
    (mount.sysroot / "d").mkdir()
    assert code_of(os.rename, mount.point / "d", mount.point / "full") == errno.ENOTEMPTY
    assert code_of(os.rename, mount.point / "d", mount.point / "f") == errno.ENOTDIR
    assert code_of(os.rename, mount.point / "file", mount.point / "full") == errno.EISDIR
    os.rename(mount.point / "d", mount.point / "empty")
    assert (mount.sysroot / "empty").is_dir() and (mount.host / "empty").is_dir()


def test_unlink_shows_the_host_again(mounted: Mounter) -> None:
    """When a sysroot entry that shadowed the host's goes, the host's is seen at once."""
    mount = mounted()
    fill(mount.host, etc__conf="host", d__x="host")
    fill(mount.sysroot, etc__conf="guest")
    (mount.sysroot / "d").mkdir()
    assert (mount.point / "etc/conf").read_text() == "guest"
    os.unlink(mount.point / "etc/conf")
    assert (mount.point / "etc/conf").read_text() == "host"
    os.rmdir(mount.point / "d")
    assert os.listdir(mount.point / "d") == ["x"]
    os.rename(mount.point / "d", mount.point / "d")
    # The host's own goes with the next unlink.
    os.unlink(mount.point / "etc/conf")
    assert code_of(os.stat, mount.point / "etc/conf") == errno.ENOENT
    assert not (mount.host / "etc/conf").exists()


def test_renaming_away_shows_the_host_again(mounted: Mounter) -> None:
    """The old name of a moved sysroot entry answers from the host."""
    mount = mounted()
    fill(mount.host, f="host", d__x="host")
    fill(mount.sysroot, f="guest", d__y="guest")
    assert (mount.point / "d/x").read_text() == "host"
    os.rename(mount.point / "f", mount.point / "g")
    os.rename(mount.point / "d", mount.point / "e")
    assert ((mount.point / "f").read_text(), (mount.point / "g").read_text()) == ("host", "guest")
    assert (mount.point / "e/y").read_text() == "guest"
    # At its new path the directory has another twin, or none: the host has no /e/x.
    assert code_of(os.stat, mount.point / "e/x") == errno.ENOENT
    assert sorted(os.listdir(mount.point / "d")) == ["x"]


def test_exdev_between_the_layers(mounted: Mounter) -> None:
    """rename, link and exchange from one layer to the other are EXDEV; nothing moves."""
    mount = mounted()
    fill(mount.host, tmp__f="host", etc__conf="host")
    fill(mount.sysroot, etc__mine="guest")
    into_host = (mount.point / "etc/mine", mount.point / "tmp/new")
    into_sysroot = (mount.point / "tmp/f", mount.point / "etc/new")
    for pair in (into_host, into_sysroot):
        assert code_of(os.rename, *pair) == errno.EXDEV
        assert code_of(os.link, *pair) == errno.EXDEV
    assert code_of(exchange, mount.point / "etc/mine", mount.point / "tmp/f") == errno.EXDEV
    # A file of the host's that stands in a directory of the sysroot's is the host's.
    assert code_of(os.rename, mount.point / "etc/conf", mount.point / "etc/x") == errno.EXDEV
    assert (mount.point / "etc/mine").read_text() == "guest"
    assert (mount.point / "tmp/f").read_text() == "host"


def test_exclusive_creation_over_the_hosts_name(mounted: Mounter) -> None:
    """Without O_EXCL the host's file is opened, with it the name is taken."""
    mount = mounted()
    fill(mount.host, etc__conf="host")
    (mount.sysroot / "etc").mkdir()
    with open(mount.point / "etc/conf", "a+") as file:
        file.seek(0)
        assert file.read() == "host"
    assert code_of(os.symlink, "x", mount.point / "etc/conf") == errno.EEXIST
    assert not (mount.sysroot / "etc/conf").exists()


# --- the host policy ----------------------------------------------------------------------------


def test_host_writes_ro(mounted: Mounter) -> None:
    """With host_writes=ro every change of a host entry is EROFS, the sysroot stays writable."""
    mount = mounted("host_writes=ro")
    fill(mount.host, tmp__f="host", etc__conf="host")
    fill(mount.sysroot, etc__mine="guest")
    there = mount.point / "tmp/f"
    assert there.read_text() == "host"
    codes = [
        code_of(os.open, there, os.O_WRONLY),
        code_of(os.open, there, os.O_RDONLY | os.O_TRUNC),
        code_of(os.open, mount.point / "tmp/new", os.O_CREAT | os.O_WRONLY),
        code_of(os.mkdir, mount.point / "tmp/d"),
        code_of(os.unlink, there),
        code_of(os.rmdir, mount.point / "tmp"),
        code_of(os.rename, there, mount.point / "tmp/g"),
        code_of(os.link, there, mount.point / "tmp/g"),
        code_of(os.symlink, "x", mount.point / "tmp/g"),
        code_of(os.mkfifo, mount.point / "tmp/g"),
        code_of(os.chmod, there, 0o777),
        code_of(os.chown, there, 1, 1),
        code_of(os.truncate, there, 0),
        code_of(os.utime, there),
        code_of(os.setxattr, there, b"user.x", b"y"),
        code_of(os.unlink, mount.point / "etc/conf"),
    ]
    assert codes == [errno.EROFS] * len(codes)
    (mount.point / "etc/mine").write_text("changed")
    fill(mount.point, etc__new="new")
    os.rename(mount.point / "etc/new", mount.point / "etc/conf")
    assert (mount.point / "etc/conf").read_text() == "new"
    assert (mount.host / "etc/conf").read_text() == "host"
    assert there.read_text() == "host"


def test_read_only_mount(mounted: Mounter) -> None:
    """With ro nothing changes in either layer."""
    sysroot = mounted.work / "guest"
    fill(sysroot, f="guest")
    mount = mounted("ro", sysroot=sysroot)
    fill(mount.host, tmp__f="host")
    for name in ("f", "tmp/f"):
        assert code_of(os.open, mount.point / name, os.O_WRONLY) == errno.EROFS
        assert code_of(os.unlink, mount.point / name) == errno.EROFS
        assert code_of(os.chmod, mount.point / name, 0) == errno.EROFS
    assert (mount.point / "tmp/f").read_text() == "host"


def test_fallback_none(mounted: Mounter) -> None:
    """The host answers nothing, and a new name may be made where the host has one."""
    mount = mounted("fallback=none")
    fill(mount.host, f="host", etc__conf="host")
    (mount.sysroot / "etc").mkdir()
    assert code_of(os.stat, mount.point / "f") == errno.ENOENT
    assert code_of(os.stat, mount.point / "etc/conf") == errno.ENOENT
    fill(mount.point, etc__conf="guest")
    assert (mount.sysroot / "etc/conf").read_text() == "guest"
    assert (mount.host / "etc/conf").read_text() == "host"


def test_fallback_safe(mounted: Mounter) -> None:
    """The guest's system paths stay the guest's; tmp, home and a few of /etc are the host's."""
    mount = mounted("fallback=safe")
    shut = [
        "usr/f", "bin/f", "sbin/f", "lib/f", "lib64/f", "lib32/f", "opt/f", "boot/f", "run/f",
        "srv/f", "var/f", "var/lib/f", "etc/f", "etc/passwd", "bin", "var/tmpx/f",
    ]  # fmt: skip
    open_ = [
        "tmp/f", "home/u/f", "var/folders/f", "var/tmp/f", "etc/resolv.conf", "etc/hosts",
        "etc/hostname", "etc/localtime", "libx/../tmp/f",
    ]  # fmt: skip
    for name in [*shut, *open_]:
        path = mount.host / name
        if name == "bin" or ".." in name:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("host")
    for name in shut:
        assert code_of(os.stat, mount.point / name) == errno.ENOENT, name
    for name in open_[:-1]:
        assert (mount.point / name).read_text() == "host", name


def test_allow_and_deny(mounted: Mounter) -> None:
    """The longest prefix decides, below what falls back by default and below what does not."""
    mount = mounted("deny=/home:/tmp/private", "allow=/home/me", "fallback=all")
    fill(mount.host, home__you__f="x", home__me__f="x", tmp__f="x", tmp__private__f="x")
    fill(mount.host, tmp__privateer="x")
    assert (mount.point / "home/me/f").exists()
    assert (mount.point / "tmp/f").exists()
    assert (mount.point / "tmp/privateer").exists()
    for name in ("home/you", "home/you/f", "tmp/private", "tmp/private/f"):
        assert code_of(os.stat, mount.point / name) == errno.ENOENT, name


def test_a_shut_place_cannot_be_made_or_moved(mounted: Mounter) -> None:
    """Below a host directory a denied name is not created, nor its parent moved to be open."""
    mount = mounted("deny=/tmp/private")
    fill(mount.host, tmp__private__f="x", tmp__f="x")
    assert code_of(os.mkdir, mount.point / "tmp/private") == errno.EACCES
    assert code_of(os.rename, mount.point / "tmp", mount.point / "other") in (
        errno.EACCES,
        errno.EXDEV,
    )
    assert code_of(os.stat, mount.point / "tmp/private/f") == errno.ENOENT


def test_allow_with_fallback_none(mounted: Mounter) -> None:
    """What is allowed is reached although the sysroot has none of its parents."""
    mount = mounted("fallback=none", "allow=/srv/data")
    fill(mount.host, srv__data__f="x", srv__other="x")
    assert (mount.point / "srv/data/f").read_text() == "x"
    assert code_of(os.stat, mount.point / "srv/other") == errno.ENOENT


def test_listing_union(mounted: Mounter) -> None:
    """With listing=union both layers' names are listed, each once, the sysroot's entry wins."""
    mount = mounted("listing=union")
    fill(mount.host, both="host", only="host", d__h="host")
    fill(mount.sysroot, both="guest", mine="guest", d__g="guest")
    assert sorted(os.listdir(mount.point)) == ["both", "d", "mine", "only"]
    assert sorted(os.listdir(mount.point / "d")) == ["g", "h"]
    with os.scandir(mount.point) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    assert sizes == {"both": 5, "mine": 5, "only": 4}
    (mount.point / "d/h").unlink()
    assert os.listdir(mount.point / "d") == ["g"]


def test_deleting_a_tree_never_wanders_onto_the_host(mounted: Mounter) -> None:
    """With the default listing, removing a directory's listed entries leaves the host alone."""
    mount = mounted()
    fill(mount.host, d__precious="host", d__sub__f="host")
    fill(mount.sysroot, d__mine="guest", d__sub__g="guest")
    for top, directories, files in os.walk(mount.point / "d", topdown=False):
        for name in files:
            os.unlink(Path(top) / name)
        for name in directories:
            os.rmdir(Path(top) / name)
    assert (mount.host / "d/precious").read_text() == "host"
    assert (mount.host / "d/sub/f").read_text() == "host"
    assert os.listdir(mount.sysroot / "d") == []


def test_virtual_trees(mounted: Mounter) -> None:
    """/proc, /sys and /dev are empty directories where the sysroot has none, at the top only."""
    mount = mounted()
    fill(mount.host, proc__self="host", sys__x="host", dev__null="host", d__proc__x="host")
    (mount.sysroot / "dev").mkdir()
    (mount.sysroot / "d").mkdir()
    for name in ("proc", "sys"):
        assert os.listdir(mount.point / name) == []
        assert stat.S_ISDIR((mount.point / name).stat().st_mode)
        assert code_of(os.mkdir, mount.point / name / "x") == errno.EROFS
        assert code_of(os.stat, mount.point / name / "self") == errno.ENOENT
        assert code_of(os.rmdir, mount.point / name) in (errno.EBUSY, errno.EROFS)
        assert code_of(os.rename, mount.point / name, mount.point / "x") in (
            errno.EBUSY,
            errno.EROFS,
        )
        assert code_of(os.mkdir, mount.point / name) == errno.EEXIST
    assert (mount.point / "d/proc/x").read_text() == "host"
    (mount.point / "dev/mine").touch()
    assert (mount.sysroot / "dev/mine").exists()


@pytest.mark.parametrize("tree", ["dev", "proc"])
def test_the_twin_of_a_virtual_tree_in_the_sysroot(mounted: Mounter, tree: str) -> None:
    """A sysroot's own, empty /dev or /proc does not fall back to the host's either."""
    mount = mounted()
    fill(mount.host, **{f"{tree}__null": "host"})
    (mount.sysroot / tree).mkdir()
    assert code_of(os.stat, mount.point / tree / "null") == errno.ENOENT


# --- mounts that meet themselves ----------------------------------------------------------------


def test_the_mountpoint_met_again_is_empty(mounted: Mounter) -> None:
    """Over the machine's own root the mount shows itself as an empty directory, without waiting."""
    mount = mounted(host=Path("/"))
    again = Path(f"{mount.point}{mount.point}")

    def look() -> tuple[list[str], bool, list[int]]:
        codes = [
            code_of(os.stat, again / "etc"),
            code_of(os.mkdir, again / "x"),
            code_of(os.rmdir, again),
            code_of(os.rename, again, again.parent / "moved"),
        ]
        return os.listdir(again), stat.S_ISDIR(again.stat().st_mode), codes

    names, is_directory, codes = in_child(look)
    assert (names, is_directory) == ([], True)
    assert codes == [errno.ENOENT, errno.EROFS, errno.EBUSY, errno.EBUSY]
    assert (mount.point / "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()


def test_the_sysroot_has_a_directory_where_the_mount_is(mounted: Mounter, workplace: Path) -> None:
    """What is absent below it is looked for on the host, which shows the mount: nobody waits."""
    sysroot = workplace / "guest"
    (sysroot / "point-0").mkdir(parents=True)
    mount = mounted(host=workplace, sysroot=sysroot)
    again = mount.point / mount.point.name

    def look() -> list[int]:
        # Otherwise the kernel knows its attributes, and asks nobody.
        os.listdir(mount.point)
        return [
            code_of(os.stat, again / "x"),
            code_of(os.stat, again / "x" / "y"),
            code_of(os.mkdir, again / "x"),
        ]

    assert in_child(look) == [errno.ENOENT, errno.ENOENT, 0]
    assert (sysroot / "point-0" / "x").is_dir()


def test_two_mounts_that_see_each_other(mounted: Mounter) -> None:
    """Each shows the other's mountpoint as an empty directory; clients of both never wait."""
    one, two = mounted(host=Path("/")), mounted(host=Path("/"))

    def look(mount: Mount, other: Mount) -> list[str]:
        found: list[str] = []
        for _ in range(50):
            found += os.listdir(f"{mount.point}{other.point}")
            found += os.listdir(f"{mount.point}{mount.point}")
            with os.scandir(f"{mount.point}{mount.point.parent}") as entries:
                found += [entry.name for entry in entries if entry.stat().st_size < 0]
        return found

    children = [start_child(lambda: look(one, two)), start_child(lambda: look(two, one))]
    assert [child.result() for child in children] == [[], []]


def test_a_real_proc_below_the_host_is_empty(mounted: Mounter) -> None:
    """A proc that is mounted anywhere on the host would name the server: it is not entered."""
    host = mounted.work / "elsewhere"
    (host / "jail" / "proc").mkdir(parents=True)
    code = os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "proc", "proc", str(host / "jail/proc"))
    assert code == 0
    try:
        mount = mounted(host=host)
        assert os.listdir(mount.point / "jail/proc") == []
        assert code_of(os.stat, mount.point / "jail/proc/self") == errno.ENOENT
    finally:
        linux.umount(os.fsencode(host / "jail/proc"), lazy=True)


# --- who may see what ---------------------------------------------------------------------------


def test_a_closed_host_directory_stays_closed(mounted: Mounter) -> None:
    """A user does not get through a host directory that he may not search, before root or after.

    The guest's own directory of that path is his to use: for him the host has nothing there.
    """
    mount = mounted()
    fill(mount.host, root__secret="host", root__d__f="host")
    (mount.host / "root").chmod(0o700)
    (mount.sysroot / "root" / "d").mkdir(parents=True)
    (mount.sysroot / "root").chmod(0o777)

    def ask() -> list[int]:
        return [
            code_of(os.stat, mount.point / "root/secret"),
            code_of(os.open, mount.point / "root/secret", os.O_RDONLY),
            code_of(os.stat, mount.point / "root/d/f"),
            code_of(os.open, mount.point / "root/d/f", os.O_RDONLY),
        ]

    assert in_child(ask, uid=USER, gid=USER) == [errno.ENOENT] * 4
    assert (mount.point / "root/secret").read_text() == "host"
    assert (mount.point / "root/d/f").read_text() == "host"
    assert in_child(ask, uid=USER, gid=USER) == [errno.ENOENT] * 4
    assert in_child(ask) == [0] * 4
    in_child(lambda: (mount.point / "root/secret").write_text("user's"), uid=USER, gid=USER)
    assert (mount.sysroot / "root/secret").read_text() == "user's"
    assert (mount.host / "root/secret").read_text() == "host"


def test_a_group_s_host_directory(mounted: Mounter) -> None:
    """Members of the directory's group get through, by a supplementary group as well."""
    mount = mounted()
    fill(mount.host, team__f="host")
    os.chown(mount.host / "team", 0, 777)
    (mount.host / "team").chmod(0o750)
    (mount.sysroot / "team").mkdir()

    def ask() -> int:
        return code_of(os.open, mount.point / "team/f", os.O_RDONLY)

    assert in_child(ask, uid=USER, gid=USER) == errno.ENOENT
    assert in_child(ask, uid=USER, gid=777) == 0
    assert in_child(ask, uid=USER, gid=USER, groups=(777,)) == 0
    assert in_child(ask, uid=USER, gid=USER) == errno.ENOENT


def test_union_listing_of_a_closed_host_directory(mounted: Mounter) -> None:
    """A user who may not read or search the host's directory learns no name of it."""
    mount = mounted("listing=union")
    fill(mount.host, root__secret="host")
    (mount.host / "root").chmod(0o700)
    fill(mount.sysroot, root__mine="guest")
    (mount.sysroot / "root").chmod(0o777)
    assert sorted(os.listdir(mount.point / "root")) == ["mine", "secret"]
    assert in_child(lambda: os.listdir(mount.point / "root"), uid=USER, gid=USER) == ["mine"]


def test_union_listing_of_a_host_directory_that_may_only_be_searched(mounted: Mounter) -> None:
    """Search permission is not read permission: the names of a 0711 directory stay unlisted."""
    mount = mounted("listing=union")
    fill(mount.host, d__secret="host")
    (mount.host / "d").chmod(0o711)
    (mount.sysroot / "d").mkdir()
    (mount.sysroot / "d").chmod(0o777)
    assert os.listdir(mount.point / "d") == ["secret"]
    assert in_child(lambda: os.listdir(mount.point / "d"), uid=USER, gid=USER) == []
    assert in_child(lambda: (mount.point / "d/secret").read_text(), uid=USER, gid=USER) == "host"


def test_the_hosts_directory_keeps_its_files(mounted: Mounter) -> None:
    """A user cannot unlink or rename a host file that the host's directory protects from him.

    The name stands in a directory that is the sysroot's and his own; the file in one that is not.
    """
    mount = mounted()
    fill(mount.host, etc__conf="host", etc__other="host")
    (mount.sysroot / "etc").mkdir()
    os.chown(mount.sysroot / "etc", USER, USER)

    def attack() -> list[int]:
        return [
            code_of(os.unlink, mount.point / "etc/conf"),
            code_of(os.rename, mount.point / "etc/conf", mount.point / "etc/x"),
            code_of(os.open, mount.point / "etc/conf", os.O_WRONLY),
        ]

    codes = in_child(attack, uid=USER, gid=USER)
    assert (mount.host / "etc/conf").read_text() == "host"
    assert codes == [errno.EACCES] * 3
    # Where he may write he may remove; in a sticky directory only what is his.
    (mount.host / "etc").chmod(0o1777)
    assert in_child(attack, uid=USER, gid=USER) == [errno.EPERM, errno.EPERM, errno.EACCES]
    os.chown(mount.host / "etc/conf", USER, USER)
    assert in_child(lambda: code_of(os.unlink, mount.point / "etc/conf"), uid=USER, gid=USER) == 0
    assert os.listdir(mount.host / "etc") == ["other"]


# --- the host's symlinks ------------------------------------------------------------------------


def test_the_twin_follows_the_hosts_links(mounted: Mounter) -> None:
    """The literal host path /lib/x works where the host's /lib is a link to usr/lib."""
    mount = mounted()
    fill(mount.host, usr__lib__x="host")
    (mount.host / "lib").symlink_to("usr/lib")
    (mount.host / "lib64").symlink_to("/usr/lib")
    (mount.sysroot / "lib").mkdir()
    (mount.sysroot / "lib64").mkdir()
    assert (mount.point / "lib/x").read_text() == "host"
    assert (mount.point / "lib64/x").read_text() == "host"


def test_the_hosts_links_stay_inside_the_host(mounted: Mounter) -> None:
    """Absolute links and .. on the way to a twin mean the host given, never the machine."""
    outside = mounted.work / "outside"
    fill(outside, f="outside", host__f="wrong")
    mount = mounted()
    fill(mount.host, f="inside")
    (mount.host / "absolute").symlink_to(outside)
    (mount.host / "up").symlink_to("../" * 20 + str(outside).lstrip("/"))
    (mount.host / "top").symlink_to("../../..")
    (mount.host / "loop").symlink_to("loop")
    for name in ("absolute", "up", "top", "loop"):
        (mount.sysroot / name).mkdir()
    assert code_of(os.stat, mount.point / "absolute/f") == errno.ENOENT
    assert code_of(os.stat, mount.point / "up/f") == errno.ENOENT
    assert (mount.point / "top/f").read_text() == "inside"
    assert code_of(os.stat, mount.point / "loop/f") in (errno.ENOENT, errno.ELOOP)


def test_a_guests_link_is_followed_in_the_guest(mounted: Mounter) -> None:
    """A link that the guest reads is the guest's business: the kernel walks its target anew."""
    mount = mounted()
    fill(mount.host, data__f="host")
    (mount.host / "l").symlink_to("data/f")
    (mount.sysroot / "s").symlink_to("data/f")
    fill(mount.sysroot, data__g="guest")
    assert os.readlink(mount.point / "l") == "data/f"
    assert (mount.point / "l").read_text() == "host"
    assert (mount.point / "s").read_text() == "host"


def test_a_host_link_to_a_directory_is_no_way_out(mounted: Mounter) -> None:
    """Entries of the host are opened one by one and never through a link planted meanwhile."""
    mount = mounted(*FRESH)
    outside = mounted.work / "outside"
    fill(outside, f="outside")
    fill(mount.host, d__f="inside")
    (mount.sysroot / "d").mkdir()
    assert (mount.point / "d/f").read_text() == "inside"
    os.rename(mount.host / "d", mount.host / "old")
    (mount.host / "d").symlink_to(outside)
    fd = os.open(mount.point / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Within the second for which a twin is believed the old one answers.
        assert code_of(os.stat, "f", dir_fd=fd) in (0, errno.ENOENT)
        if code_of(os.stat, "f", dir_fd=fd) == 0:
            assert (mount.point / "d/f").read_text() == "inside"
    finally:
        os.close(fd)


def test_the_host_may_change_behind_the_mount(mounted: Mounter) -> None:
    """Files that come, change and go on the host are seen so."""
    mount = mounted(*FRESH)
    (mount.host / "tmp").mkdir()
    assert code_of(os.stat, mount.point / "tmp/f") == errno.ENOENT
    fill(mount.host, tmp__f="one")
    assert (mount.point / "tmp/f").read_text() == "one"
    os.unlink(mount.host / "tmp/f")
    fill(mount.host, tmp__f="second")
    assert (mount.point / "tmp/f").read_text() == "second"
    os.unlink(mount.host / "tmp/f")
    assert code_of(os.stat, mount.point / "tmp/f") == errno.ENOENT


def test_inode_numbers_of_both_layers_differ(mounted: Mounter) -> None:
    """One directory seen in both layers is not taken for one inode (find and tar rely on it)."""
    sysroot = mounted.work / "host-0" / "guest"
    sysroot.mkdir(parents=True)
    mount = mounted(sysroot=sysroot)
    fill(mount.point, f="x")
    assert (mount.point / "guest/f").read_text() == "x"
    (mount.point / "f").write_text("changed")
    assert (mount.point / "f").stat().st_ino != (mount.point / "guest/f").stat().st_ino
