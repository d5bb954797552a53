"""`sysroot-fs resolve`: what it says about a path, to people and to programs."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sidecar.walk import Step
from sysroot_fs.cli import main
from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.resolve import answer, as_json, as_text, conclusion, strip_mountpoint


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """A sysroot with /etc/own, /bin -> usr/bin; and a host with /etc/own, /etc/theirs, /opt."""
    sysroot, host = tmp_path / "guest", tmp_path / "host"
    for folder in (sysroot / "etc", sysroot / "usr/bin", host / "etc", host / "opt"):
        folder.mkdir(parents=True)
    for file in (sysroot / "etc/own", sysroot / "usr/bin/tool", host / "etc/own"):
        file.touch()
    (host / "etc/theirs").touch()
    (sysroot / "bin").symlink_to("usr/bin")
    return sysroot, host


def resolved(
    layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """The exit status and what was printed; nothing goes to stderr."""
    status = main(["resolve", str(layers[0]), "--host", str(layers[1]), *words])
    said = capsys.readouterr()
    assert said.err == ""
    return status, said.out


def test_in_the_sysroot(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The sysroot's entry is the answer where both layers have the path."""
    status, out = resolved(layers, capsys, "/etc/own")
    assert status == 0
    assert out.splitlines()[-1] == f"/etc/own is in the sysroot, at {layers[0]}/etc/own"


def test_on_the_host(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What the sysroot lacks is the host's, under the literal path."""
    status, out = resolved(layers, capsys, "/etc/theirs")
    assert status == 0
    assert out.splitlines()[-1] == f"/etc/theirs is in the host, at {layers[1]}/etc/theirs"


def test_absent(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """An absent path ends with the errno and the reason, and with exit status 1."""
    status, out = resolved(layers, capsys, "/etc/none")
    assert status == 1
    assert out.splitlines()[-1].startswith("/etc/none is ENOENT: ")


def test_through_a_file(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A path that goes on behind a file is ENOTDIR."""
    status, out = resolved(layers, capsys, "/etc/own/x")
    assert status == 1
    assert "ENOTDIR" in out.splitlines()[-1]


def test_several_paths(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Each path has a table of its own, and one that is absent decides the exit status."""
    status, out = resolved(layers, capsys, "/etc/none", "/etc/own")
    assert status == 1
    assert len(out.split("\n\n")) == 2


def test_policy(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The tree's options count here as they do in the mount, in either form."""
    assert resolved(layers, capsys, "/opt", "--fallback", "none")[0] == 1
    assert resolved(layers, capsys, "/opt", "-o", "fallback=none,allow=/opt")[0] == 0
    assert resolved(layers, capsys, "/opt", "-o", "ro,deny=/opt")[0] == 1


def test_through_a_link(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A link that is followed is shown with its target, and the file's own place is the answer."""
    status, out = resolved(layers, capsys, "/bin/tool")
    assert status == 0
    assert "-> usr/bin" in out
    assert out.splitlines()[-1].endswith(f"at {layers[0]}/usr/bin/tool")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", ""),
        ("/etc/..", ""),
        ("/..", ""),
        ("/usr/bin/..", "/usr"),
        ("/usr/bin/../.", "/usr"),
        ("usr//bin/", "/usr/bin"),
        ("/bin/..", "/usr"),
        ("/usr/../etc/own", "/etc/own"),
    ],
)
def test_dots(
    layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str], path: str, place: str
) -> None:
    """Dots and slashes lead where Linux leads them."""
    status, out = resolved(layers, capsys, path, "--json")
    assert (status, json.loads(out)["disk"]) == (0, f"{layers[0]}{place}")


def test_columns_are_aligned(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell of a column starts below its heading."""
    _, out = resolved(layers, capsys, "/usr/bin/tool")
    head, *rows, _ = out.splitlines()
    start = head.index("layer")
    assert len(rows) == 3
    assert {row[start : start + 7] for row in rows} == {"sysroot"}


def test_create(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """With --create a new name says where it would go, and nothing is made."""
    status, out = resolved(layers, capsys, "/etc/new", "/opt/new", "--create")
    assert status == 0
    assert f"/etc/new would be created in the sysroot, as {layers[0]}/etc/new" in out
    assert f"/opt/new would be created in the host, as {layers[1]}/opt/new" in out
    assert not (layers[0] / "etc/new").exists() and not (layers[1] / "opt/new").exists()


def test_create_what_exists(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """With --create a name that exists is where it is."""
    status, out = resolved(layers, capsys, "/etc/own", "--create")
    assert status == 0
    assert out.splitlines()[-1].startswith("/etc/own is in the sysroot")


def test_json(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """With --json each path is one object on one line, with its steps."""
    status, out = resolved(layers, capsys, "/etc/theirs", "/etc/none", "--json")
    theirs, none = map(json.loads, out.splitlines())
    assert status == 1
    assert (theirs["found"], theirs["layer"], theirs["errno"]) == (True, "host", None)
    assert [step["verdict"] for step in theirs["steps"]] == ["exact", "host"]
    assert (none["found"], none["disk"], none["errno"]) == (False, None, "ENOENT")


def test_json_of_other_bytes(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is not UTF-8 is also given in hexadecimal; one that is, is not."""
    (layers[0] / os.fsdecode(b"a\xff")).touch()
    _, out = resolved(layers, capsys, os.fsdecode(b"/a\xff"), "/etc", "--json")
    odd, plain = map(json.loads, out.splitlines())
    assert bytes.fromhex(odd["path_hex"]) == b"/a\xff"
    assert bytes.fromhex(odd["steps"][0]["name_hex"]) == b"a\xff"
    assert "path_hex" not in plain


def test_unprintable_names(layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A name with a newline or an escape stays on its line and moves no cursor."""
    _, out = resolved(layers, capsys, "/a\nb\x1b[2J")
    assert "\x1b" not in out
    assert r"/a\nb\x1b[2J is ENOENT" in out


@pytest.mark.parametrize(
    ("path", "guest"),
    [
        (b"/m/g", b"/"),
        (b"/m/g/", b"/"),
        (b"/m/g/etc/x", b"/etc/x"),
        (b"/m//g/./etc//x/", b"/etc/x/"),
        (b"/m/g/link/../x", b"/link/../x"),
        (b"/m/other/../g/x", b"/x"),
    ],
)
def test_below_the_mountpoint(path: bytes, guest: bytes) -> None:
    """A path from outside loses the mountpoint; what follows is the guest's own."""
    assert strip_mountpoint(path, b"/m/g") == guest


@pytest.mark.parametrize("path", [b"/m", b"/m/gx", b"/m/g/../x", b"x", b"/"])
def test_not_below_the_mountpoint(path: bytes) -> None:
    """A path that is not below the mountpoint is a usage error."""
    with pytest.raises(UsageError, match="not below the mountpoint"):
        strip_mountpoint(path, b"/m/g")


def test_mountpoint_is_slash() -> None:
    """Below `/` is everything."""
    assert strip_mountpoint(b"/etc", b"/") == b"/etc"


def test_relative_to_the_mountpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inside the mount, a relative path is below it; by a link to the mountpoint too."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    assert strip_mountpoint(b"etc", os.fsencode(tmp_path / "link")) == b"/etc"


def test_mountpoint_on_the_command_line(
    layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """--mountpoint is taken off every path."""
    status, out = resolved(layers, capsys, "--mountpoint", "/m", "/m/etc/own")
    assert status == 0
    assert out.splitlines()[-1].startswith("/etc/own is in the sysroot")


@pytest.mark.parametrize(
    "words", [[""], [], ["/x", "--mountpoint", "/m"], ["/x", "-o", "fallbak=all"]]
)
def test_usage(
    layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A wrong command line is one sentence, and exit status 2."""
    assert main(["resolve", str(layers[0]), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sysroot-fs: ") and said.err.count("\n") == 1


@pytest.mark.parametrize("what", ["none", "etc/own"])
def test_bad_sysroot(
    layers: tuple[Path, Path], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A sysroot that is missing or a file is one sentence, and exit status 1."""
    assert main(["resolve", str(layers[0] / what), "/"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# --- what it says about walks that only a folding volume gives -------------------------------


def step(path: bytes, verdict: str, **more: Any) -> Step:
    """A step as the walk makes it."""
    values = {"layer": "sysroot", "stored": path.split(b"/")[-1], "mapped": False, "why": "so"}
    return Step(name=path.split(b"/")[-1], path=path, verdict=verdict, **{**values, **more})


def test_stored_names_make_the_place() -> None:
    """The place on disk is put together from the stored names, and a mapping is shown as such."""
    steps = (
        step(b"/A", "escape", stored=b".ef=41", mapped=True),
        step(b"/A/x", "exact", mapped=True),
    )
    result = answer(b"/A/x", steps, b"/guest", b"/")
    assert result.disk == b"/guest/.ef=41/x"
    assert as_json(result)["mapped"] is True
    assert ".ef=41" in as_text(result)


@pytest.mark.parametrize("verdict", ["absent", "claimed", "below-mapping", "policy"])
def test_verdicts_of_absence(verdict: str) -> None:
    """Each verdict of absence is ENOENT with the walk's reason."""
    steps = (step(b"/A", verdict, layer="none", stored=None, error=errno.ENOENT),)
    result = answer(b"/A", steps, b"/guest", b"/")
    assert (result.found, result.disk) == (False, None)
    assert conclusion(result) == "/A is ENOENT: so"


def test_virtual() -> None:
    """A virtual tree is found, and is nowhere on disk."""
    steps = (step(b"/proc", "virtual", layer="virtual", stored=None),)
    result = answer(b"/proc", steps, b"/guest", b"/")
    assert (result.found, result.disk) == (True, None)
    assert "empty directory" in conclusion(result)


def test_error_of_a_directory() -> None:
    """An error on the way, such as a damaged index, is the answer, and never "absent"."""
    steps = (step(b"/A", "absent", layer="none", stored=None, error=errno.EIO, why="damaged"),)
    assert conclusion(answer(b"/A", steps, b"/guest", b"/")) == "/A is EIO: damaged"
