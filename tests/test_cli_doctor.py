"""`sysroot-fs doctor`: what it finds, what that costs, and what it concludes."""

import json
import resource
from pathlib import Path
from typing import Any

import attrs
import pytest

from sidecar import volume
from sidecar.volume import TRANSPARENT, ProbeError, Traits
from sysroot_fs.cli import doctor, machine, main
from sysroot_fs.cli.doctor import COSTS, FINE, STOPS, Finding
from sysroot_fs.cli.errors import FuseUnavailable

PLAIN = TRANSPARENT
"""A volume that lacks nothing."""


def costly(**traits: Any) -> set[str]:
    """The findings that cost something on a plain volume with these traits."""
    found = doctor.volume_findings(attrs.evolve(PLAIN, **traits))
    return {finding.name for finding in found if finding.state != FINE}


def test_plain_volume() -> None:
    """A volume that lacks nothing costs nothing."""
    assert costly() == set()


@pytest.mark.parametrize(
    ("trait", "value", "name"),
    [
        ("folds", True, "folds case"),
        ("preserves_case", False, "preserves case"),
        ("normalises", "loose", "normalises"),
        ("normalises", "stores", "normalises"),
        ("ill_formed", False, "ill-formed UTF-8"),
        ("non_ascii", False, "non-ASCII names"),
        ("refused", b':*"', "refused characters"),
        ("trailing_dot_space", False, "trailing dot or space"),
        ("device_names", False, "names of devices"),
        ("name_max", 143, "longest name"),
        ("symlinks", False, "symlinks"),
        ("hard_links", False, "hard links"),
        ("modes", False, "modes"),
        ("owners", False, "owners"),
        ("special_files", False, "special files"),
        ("xattrs", False, "extended attributes"),
        ("rename_noreplace", False, "rename without replacing"),
        ("rename_exchange", False, "rename exchanging"),
        ("time_step_ns", 1_000_000_000, "time step (ns)"),
        ("stable_inodes", False, "stable inode numbers"),
        ("writable", False, "writable"),
    ],
)
def test_each_lack_costs(trait: str, value: object, name: str) -> None:
    """Each trait that a volume lacks is a finding that costs something, and says what."""
    assert costly(**{trait: value}) - {"transparent"} == {name}


def test_every_trait_is_told() -> None:
    """No trait that the probe measures is left out."""
    told = sum(1 for _ in doctor.volume_findings(PLAIN))
    # `name_unit` stands beside `name_max`, `measured` in the title; `transparent` is derived.
    assert told == len(attrs.fields(Traits)) - 2 + 1


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (b"", "none"),
        (b"\x01:", r"\x01:"),
        (b":*" + bytes(range(1, 32)), ":* and control"),
        (bytes(range(1, 32)), "control"),
    ],
)
def test_refused_characters(refused: bytes, text: str) -> None:
    """Refused control bytes are shown as escapes, and all of them together as a word."""
    found = doctor.volume_findings(attrs.evolve(PLAIN, refused=refused))
    assert [f.value for f in found if f.name == "refused characters"] == [text]


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine that can mount, both sections are told and the last line says so."""
    assert main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"the volume of {tmp_path}" in said.out
    assert "this machine" in said.out
    assert "can be mounted here" in said.out.splitlines()[-1]


def test_nothing_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The probe leaves the directory as it was."""
    main(["doctor", str(tmp_path)])
    capsys.readouterr()
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: one object, whose findings have a name, a value, a state and a meaning."""
    assert main(["doctor", "--json", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mountable"] is True
    assert told["sysroot"] == str(tmp_path)
    for finding in told["findings"]:
        assert set(finding) == {"section", "name", "value", "state", "means"}
        assert finding["state"] in (FINE, COSTS, STOPS)
        assert finding["means"]


def machine_state(name: str) -> Finding:
    """The machine's finding of this name."""
    (found,) = (finding for finding in doctor.machine_findings() if finding.name == name)
    return found


def test_device_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without /dev/fuse a mount is impossible: exit status 1, and the last line says why."""
    monkeypatch.setattr(machine, "DEVICE", str(tmp_path / "fuse"))
    assert main(["doctor", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "cannot be mounted here" in last and "is missing" in last


@pytest.mark.parametrize(("root", "state"), [(True, COSTS), (False, STOPS)])
def test_fusermount_missing(monkeypatch: pytest.MonkeyPatch, root: bool, state: str) -> None:
    """Without fusermount3 root loses little, and others cannot mount."""
    monkeypatch.setattr(machine, "fusermount", lambda: None)
    monkeypatch.setattr(machine, "may_mount", lambda: root)
    assert machine_state("fusermount3").state == state


def test_broken_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyfuse3 that cannot be loaded costs its door."""

    def fail() -> None:
        raise FuseUnavailable("pyfuse3 cannot be loaded (x): install it")

    monkeypatch.setattr(machine, "load_binding", fail)
    assert machine_state("pyfuse3").state == COSTS


def test_libfuse_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libfuse 3 there is no binding's door."""
    monkeypatch.setattr(machine, "libfuse_version", lambda: None)
    assert machine_state("libfuse").state == COSTS


@pytest.mark.parametrize("door", ["kernel", "pyfuse3"])
def test_the_door(monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    """It says which door `auto` is."""
    monkeypatch.setenv("SYSROOT_FS_DOOR", door)
    assert machine_state("door").value == door


@pytest.mark.parametrize(
    ("release", "state"),
    [("5.5.0", STOPS), ("5.6.0-rc1", FINE), ("6.1.0-18-amd64", FINE), ("10.0", FINE)],
)
def test_old_kernel(monkeypatch: pytest.MonkeyPatch, release: str, state: str) -> None:
    """A kernel without openat2 makes a mount impossible."""
    monkeypatch.setattr(machine, "kernel", lambda: release)
    assert machine_state("kernel").state == state


def test_proc_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc a mount is impossible."""
    monkeypatch.setattr(machine, "proc_problem", lambda: "none is mounted here")
    assert machine_state("/proc").state == STOPS


@pytest.mark.parametrize(
    ("limits", "state"),
    [
        ((1024, 1024), COSTS),
        ((20000, 20000), FINE),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), FINE),
    ],
)
def test_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], state: str
) -> None:
    """A low descriptor limit costs something; no limit at all is fine."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    assert machine_state("descriptor limit").state == state


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("user_allow_other\n", True), ("#user_allow_other\n", False), ("", False)],
)
def test_fuse_conf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, allowed: bool
) -> None:
    """fuse.conf allows others only with the word on a line of its own."""
    (tmp_path / "fuse.conf").write_text(text)
    monkeypatch.setattr(machine, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    assert machine.user_allow_other() is allowed


@pytest.mark.parametrize("error", [ProbeError("the server\nis gone"), OSError(5, "x")])
def test_probe_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """A volume that cannot be probed is one sentence, and exit status 1."""

    def refuse(_: int) -> Traits:
        raise error

    monkeypatch.setattr(volume, "probe", refuse)
    assert main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be probed" in said.err and said.err.count("\n") == 1


def test_bad_sysroot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sysroot that is missing is one sentence, and exit status 1."""
    assert main(["doctor", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was only inferred is said to be so."""
    found = list(doctor.volume_findings(PLAIN))
    assert "unknown" in doctor.as_text(b"/guest", [*found, *doctor.machine_findings()], False)
