"""Missing libraries: what the search and the loader say against what really happens."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysroot_fs.guest import elf, libraries
from sysroot_fs.guest.libraries import Missing
from sysroot_fs.guest.plan import Refusal
from sysroot_fs.guest.program import check
from tests.children import in_child
from tests.matrix import guests
from tests.programs import (
    GLIBC,
    MUSL,
    inside,
    library,
    old_path,
    program,
    run_path,
    status_of,
)

Environment = Mapping[bytes, bytes]


@pytest.fixture(scope="session")
def guest(session_workplace: Path) -> Path:
    """The musl guest root, for this module alone."""
    root = session_workplace / "guest-libraries"
    guests.unpack(root)
    return root


def verdict(path: bytes, environment: Environment) -> str | None:
    """What `check` has against a program, None for nothing."""
    try:
        check(path, environment)
    except Refusal as refusal:
        assert refusal.status == 127
        return str(refusal)
    return None


def both(path: bytes, environment: Environment) -> tuple[bool, str | None]:
    """Whether a program really starts, and what `check` has against it."""
    return status_of(path, environment) == 0, verdict(path, environment)


def quick(path: bytes, environment: Environment) -> list[bytes]:
    """What the search alone misses, before the loader is asked."""
    image = elf.read(path)
    assert image is not None and image.interpreter is not None
    musl = libraries.libc_of(image.interpreter) == "musl"
    secure = libraries.gains_rights(path)
    search = libraries._Search(path, image, image.interpreter, musl, environment, secure)
    return [miss.library for miss in search.run()]


# --- scenarios: each is made in a folder and says whether the program starts -------------------

Scenario = Callable[[Path, str, str], tuple[Environment, bool]]
SCENARIOS: list[Scenario] = []


def scenario_of_both(scenario: Scenario) -> Scenario:
    """Try it with musl and with glibc."""
    SCENARIOS.append(scenario)
    return scenario


@scenario_of_both
def _nothing_needed(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    program(at / "prog", loader)
    return {}, True


@scenario_of_both
def _missing(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    program(at / "prog", loader, "libscenario.so")
    return {}, False


@scenario_of_both
def _library_path(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, "libscenario.so")
    return {b"LD_LIBRARY_PATH": f"/absent:{here}/own".encode()}, True


@scenario_of_both
def _library_path_of_another(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, "libscenario.so")
    return {b"LD_LIBRARY_PATH": f"{here}/other".encode()}, False


@scenario_of_both
def _rpath(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, "libscenario.so", options=old_path(f"{here}/own"))
    return {}, True


@scenario_of_both
def _runpath(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, "libscenario.so", options=run_path(f"{here}/own"))
    return {}, True


@scenario_of_both
def _rpath_of_the_dependent(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libdeep.so")
    library(at / "own/libscenario.so", "libdeep.so")
    program(at / "prog", loader, "libscenario.so", options=old_path(f"{here}/own"))
    return {}, True


@scenario_of_both
def _runpath_of_the_dependent(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libdeep.so")
    library(at / "own/libscenario.so", "libdeep.so")
    program(at / "prog", loader, "libscenario.so", options=run_path(f"{here}/own"))
    return {}, loader == MUSL  # glibc does not hand a run path down


@scenario_of_both
def _rpath_beside_runpath(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libdeep.so")
    library(at / "own/libscenario.so", "libdeep.so", options=run_path("/absent"))
    program(at / "prog", loader, "libscenario.so", options=old_path(f"{here}/own"))
    return {}, loader == MUSL  # glibc asks no dependent's rpath for one that has a run path


@scenario_of_both
def _origin(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "bin/real", loader, "libscenario.so", options=run_path("$ORIGIN/../own"))
    (at / "prog").symlink_to("bin/real")
    return {}, loader == GLIBC  # musl asks /proc/self/exe, and this guest has no /proc


@scenario_of_both
def _origin_of_a_library(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/deep/libdeep.so")
    library(at / "own/libscenario.so", "libdeep.so", options=run_path("${ORIGIN}/deep"))
    program(at / "prog", loader, "libscenario.so", options=run_path(f"{here}/own"))
    return {}, True


@scenario_of_both
def _other_machine_only(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    environment, _ = _other_machine_first(at, here, loader)
    (at / "own/libscenario.so").unlink()
    return environment, loader == MUSL  # which does not look at the machine


@scenario_of_both
def _another_soname(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so", soname="libalias.so")
    needs = ("libscenario.so", "libalias.so")
    program(at / "prog", loader, *needs, options=run_path(f"{here}/own"))
    return {}, loader == GLIBC  # musl does not look at sonames


@scenario_of_both
def _other_variables(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "lib/x86_64-linux-gnu/libscenario.so")
    program(at / "bin/real", loader, "libscenario.so", options=run_path("$ORIGIN/../$LIB"))
    (at / "links").mkdir()
    (at / "links/prog").symlink_to("../bin/real")
    (at / "prog").symlink_to("links/prog")
    return {}, loader == GLIBC  # musl passes over a path with a variable that it does not know


@scenario_of_both
def _better_processor(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/glibc-hwcaps/x86-64-v2/libscenario.so")
    program(at / "prog", loader, "libscenario.so")
    return {b"LD_LIBRARY_PATH": f"{here}/own".encode()}, loader == GLIBC


@scenario_of_both
def _deep(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so", "libdeep.so")
    program(at / "prog", loader, "libscenario.so", options=run_path(f"{here}/own"))
    return {}, False


@scenario_of_both
def _circle(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libdeep.so", "libscenario.so")
    library(at / "own/libscenario.so", "libdeep.so")
    program(at / "prog", loader, "libscenario.so", options=old_path(f"{here}/own"))
    return {}, True


@scenario_of_both
def _path_that_exists(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, f"{here}/own/libscenario.so")
    return {}, True


@scenario_of_both
def _path_that_is_absent(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    program(at / "prog", loader, f"{here}/own/libscenario.so")
    return {}, False


@scenario_of_both
def _preloaded(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    program(at / "prog", loader, "libscenario.so")
    # glibc knows it by its soname then; musl knows what a path led to by that path only.
    return {b"LD_PRELOAD": f"{here}/own/libscenario.so".encode()}, loader == GLIBC


@scenario_of_both
def _other_machine_first(at: Path, here: str, loader: str) -> tuple[Environment, bool]:
    library(at / "own/libscenario.so")
    other = library(at / "other/libscenario.so")
    content = bytearray(other.read_bytes())
    content[18:20] = b"\xb7\0"  # e_machine: aarch64
    other.write_bytes(content)
    program(at / "prog", loader, "libscenario.so")
    return {b"LD_LIBRARY_PATH": f"{here}/other:{here}/own".encode()}, True


# Where the search misses what the loader finds; it may, but not where no scenario says so.
LEFT_TO_GLIBC = (_preloaded, _other_variables, _better_processor)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__[1:])
def test_musl(scenario: Scenario, guest: Path) -> None:
    """A program of a musl guest is refused exactly where it would not start."""
    here = f"/scenario{scenario.__name__}"
    path = f"{here}/prog".encode()
    environment, starts = scenario(guest / here[1:], here, MUSL)
    runs, said = inside(guest, lambda: both(path, environment))
    missed = inside(guest, lambda: quick(path, environment))
    assert runs == starts
    if scenario is _origin:
        # Its loader's own list finds the library, so there is no refusal: never a false one.
        starts = True
    assert (said is None) == starts
    assert (not missed) == starts


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__[1:])
def test_glibc(scenario: Scenario, workplace: Path) -> None:
    """A program of the machine itself is refused exactly where it would not start."""
    path = bytes(workplace / "prog")
    environment, starts = scenario(workplace, str(workplace), GLIBC)
    runs, said = both(path, environment)
    assert runs == starts
    assert (said is None) == starts
    assert (not quick(path, environment)) == (starts and scenario not in LEFT_TO_GLIBC)


def test_the_search_alone_is_enough_for_the_ordinary_program(guest: Path) -> None:
    """The musl guest's own programs and the machine's own need no question to the loader."""
    names = (b"/bin/busybox", b"/usr/bin/ls", b"/usr/bin/sort")
    assert inside(guest, lambda: [quick(name, {}) for name in names]) == [[], [], []]
    machine = ("bash", "gcc", "tar", "git")
    paths = [shutil.which(name) for name in machine] + [sys.executable]
    assert [quick(path.encode(), {}) for path in paths if path] == [[]] * 5


def test_a_refusal_names_the_library_who_needs_it_and_where_it_was_looked_for(
    guest: Path,
) -> None:
    """The sentence is the whole story of a missing library of a library."""
    library(guest / "usr/lib/libneedy.so.2", "libabsent.so.1")
    program(guest / "bin/needy", MUSL, "libneedy.so.2")
    assert inside(guest, lambda: verdict(b"/bin/needy", {})) == (
        "`/bin/needy` needs the library libabsent.so.1 (needed by libneedy.so.2), "
        "which the guest lacks: looked in /lib, /usr/local/lib, /usr/lib"
    )


def test_every_missing_library_is_named(guest: Path) -> None:
    """Who installs what is missing need not come back for the next one."""
    program(guest / "bin/two", MUSL, "libfirst.so", "libsecond.so", "libthird.so")
    said = inside(guest, lambda: verdict(b"/bin/two", {}))
    assert said is not None
    assert "needs the library libfirst.so, which" in said
    assert said.endswith("; it also lacks libsecond.so, libthird.so")


def test_glibc_is_looked_for_in_its_cache_and_directories(workplace: Path) -> None:
    """The machine's own loader's places are named, each once."""
    program(workplace / "prog", GLIBC, "libscenario.so", options=run_path("/absent"))
    said = verdict(bytes(workplace / "prog"), {b"LD_LIBRARY_PATH": b"/opt/mine"})
    assert said is not None
    assert "looked in /opt/mine, /absent, /etc/ld.so.cache, /lib/x86_64-linux-gnu, " in said


def test_a_library_that_may_not_be_read_is_named(guest: Path) -> None:
    """A library that only root may read is missing for a user, who is told which file it is."""
    library(guest / "lib/libsecret.so").chmod(0o600)
    program(guest / "bin/secretive", MUSL, "libsecret.so")
    runs, said = inside(guest, lambda: both(b"/bin/secretive", {}), uid=1000)
    assert not runs
    assert said == (
        "`/bin/secretive` needs the library libsecret.so, "
        "which this user may not read: /lib/libsecret.so"
    )


@pytest.fixture
def path_file(guest: Path) -> Iterator[Path]:
    """The file that sets musl's directories, gone afterwards."""
    file = guest / "etc/ld-musl-x86_64.path"
    yield file
    file.unlink()


@pytest.mark.parametrize("between", ["\n", ":", "\n\n:"])
def test_the_path_file_of_musl_sets_its_directories(
    guest: Path, path_file: Path, between: str
) -> None:
    """Its directories count, with newlines or colons between them."""
    path_file.write_text(f"/lib{between}/opt/listed{between}")
    library(guest / "opt/listed/liblisted.so")
    program(guest / "bin/listed", MUSL, "liblisted.so")
    missed, runs = inside(guest, lambda: (quick(b"/bin/listed", {}), both(b"/bin/listed", {})))
    assert (missed, runs) == ([], (True, None))


def test_the_path_file_of_musl_replaces_the_default(guest: Path, path_file: Path) -> None:
    """What lies in /usr/lib is missing where the file does not list it."""
    path_file.write_text("/lib\n")
    library(guest / "usr/lib/libusual.so")
    program(guest / "bin/usual", MUSL, "libusual.so")
    runs, said = inside(guest, lambda: both(b"/bin/usual", {}))
    assert not runs
    assert said is not None and said.endswith("which the guest lacks: looked in /lib")


def test_the_path_file_lies_beside_the_loader(guest: Path) -> None:
    """A musl in /opt/musl/lib reads /opt/musl/etc, not /etc."""
    (guest / "opt/musl/lib").mkdir(parents=True)
    (guest / "opt/musl/etc").mkdir()
    shutil.copy(guest / MUSL[1:], guest / "opt/musl/lib")
    (guest / "opt/musl/etc/ld-musl-x86_64.path").write_text("/opt/musl/extra")
    library(guest / "opt/musl/extra/libextra.so")
    program(guest / "bin/extra", f"/opt/musl{MUSL}", "libextra.so")
    missed, runs = inside(guest, lambda: (quick(b"/bin/extra", {}), both(b"/bin/extra", {})))
    assert (missed, runs) == ([], (True, None))


def test_musl_is_its_own_libraries(guest: Path) -> None:
    """The libraries that musl's loader contains need no files, and a similar name does."""
    own = ("libc.so", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1")
    program(guest / "bin/own", MUSL, *own, "libxnet.so", "ld-musl-x86_64.so.1")
    program(guest / "bin/similar", MUSL, "libmagic.so.1")
    runs, missed = inside(guest, lambda: (both(b"/bin/own", {}), quick(b"/bin/similar", {})))
    assert runs == (True, None)
    assert missed == [b"libmagic.so.1"]


# --- programs that gain rights ----------------------------------------------------------------


def _set_id(at: Path, mode: int) -> tuple[bytes, Environment]:
    library(at / "own/libscenario.so")
    path = program(at / "prog", GLIBC, "libscenario.so")
    path.chmod(mode)
    return bytes(path), {b"LD_LIBRARY_PATH": bytes(at / "own")}


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_a_program_that_gains_rights_ignores_the_library_path(workplace: Path, mode: int) -> None:
    """A library that lies only in LD_LIBRARY_PATH is missing for a set-id program."""
    path, environment = _set_id(workplace, mode)
    runs, said = in_child(lambda: both(path, environment), uid=1000, gid=1000)
    assert not runs
    assert said is not None
    assert said.endswith("and not in LD_LIBRARY_PATH, which programs that gain rights ignore")


def test_a_set_id_program_of_ones_own_gains_nothing(workplace: Path) -> None:
    """Root's own set-id program keeps LD_LIBRARY_PATH."""
    path, environment = _set_id(workplace, 0o6755)
    assert both(path, environment) == (True, None)


def test_no_new_privileges_means_none(workplace: Path) -> None:
    """Where the process has given up new rights, LD_LIBRARY_PATH counts."""
    path, environment = _set_id(workplace, 0o4755)

    def work() -> tuple[bool, str | None]:
        assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        return both(path, environment)

    assert in_child(work, uid=1000, gid=1000) == (True, None)


def test_nosuid_gives_no_rights(workplace: Path) -> None:
    """On a mount with nosuid a set-id program keeps LD_LIBRARY_PATH."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nosuid,mode=755", "tmpfs", workplace], check=True
    )
    try:
        path, environment = _set_id(workplace, 0o4755)
        assert in_child(lambda: both(path, environment), uid=1000, gid=1000) == (True, None)
    finally:
        subprocess.run(["umount", workplace], check=True)


# --- the loader as a witness ------------------------------------------------------------------


def _false_loader(at: Path, script: str) -> bytes:
    """A program whose loader is *script*: --list prints what it prints."""
    loader = at / "ld-musl-x86_64.so.1"
    loader.write_text(f"#!/bin/sh\n{script}\n")
    loader.chmod(0o755)
    return bytes(program(at / "prog", str(loader), "libscenario.so"))


def test_only_what_the_loader_misses_too_is_missing(workplace: Path) -> None:
    """A loader that finds what the search has missed is believed."""
    path = _false_loader(workplace, "echo '\tlibscenario.so => /x (0x1)'")
    assert quick(path, {}) == [b"libscenario.so"]
    assert verdict(path, {}) is None


def test_the_loader_cannot_add_to_what_is_missing(workplace: Path) -> None:
    """A loader that complains about something else only does not stop the program."""
    path = _false_loader(workplace, "echo 'Error loading shared library libelse.so: no' >&2")
    assert verdict(path, {}) is None


@pytest.mark.parametrize(
    "script", ["sleep 60", "exec >/dev/null 2>&1; sleep 60", "yes", "kill -9 $$"]
)
def test_a_loader_that_does_not_answer_is_left_alone(
    workplace: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs, closes its output, talks for ever or dies costs a bounded time."""
    monkeypatch.setattr(libraries, "LOADER_PATIENCE", 0.5)
    path = _false_loader(workplace, script)
    began = time.monotonic()
    assert verdict(path, {}) is None
    assert time.monotonic() - began < 5


def test_asking_the_loader_leaves_nothing_behind(workplace: Path) -> None:
    """No child, no descriptor and no signal disposition is left for execve to inherit."""
    path = bytes(program(workplace / "prog", GLIBC, "libscenario.so"))

    def work() -> tuple[bool, bool, object]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        before = os.listdir("/proc/self/fd")
        refused = verdict(path, {}) is not None
        try:
            os.waitpid(-1, os.WNOHANG)
            childless = False
        except ChildProcessError:
            childless = True
        assert os.listdir("/proc/self/fd") == before
        return refused, childless, signal.getsignal(signal.SIGCHLD)

    assert in_child(work) == (True, True, signal.SIG_IGN)


def test_debugging_the_loader_changes_no_answer(workplace: Path) -> None:
    """LD_DEBUG and its like do not reach the loader that is asked."""
    path = bytes(program(workplace / "prog", GLIBC, "libscenario.so"))
    noisy = {b"LD_DEBUG": b"all", b"LD_DEBUG_OUTPUT": bytes(workplace / "debug")}
    assert verdict(path, noisy) is not None
    assert sorted(os.listdir(workplace)) == ["prog"]


# --- cost and hostile files -------------------------------------------------------------------


def test_ten_libraries_cost_little(guest: Path) -> None:
    """A program with ten libraries is checked within 15 ms."""
    names = [f"libmany{number}.so" for number in range(10)]
    for name in names:
        library(guest / "usr/lib" / name)
    program(guest / "bin/many", MUSL, *names)

    def work() -> float:
        took = []
        for _ in range(10):
            began = time.perf_counter()
            check(b"/bin/many", {})
            took.append(time.perf_counter() - began)
        return min(took)

    # The best of ten: the machine may be busy with others.
    assert inside(guest, work) < 0.015


@pytest.mark.parametrize("limit", ["OBJECTS", "PATIENCE"])
def test_a_search_that_takes_too_long_gives_up(
    guest: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A guest cannot keep its user waiting by a maze of libraries: the kernel decides then."""
    program(guest / "bin/maze", MUSL, "libabsent1.so", "libabsent2.so")
    assert inside(guest, lambda: verdict(b"/bin/maze", {})) is not None
    monkeypatch.setattr(libraries, limit, 0)
    assert inside(guest, lambda: verdict(b"/bin/maze", {})) is None


@pytest.fixture(scope="session")
def victim(session_workplace: Path) -> Path:
    """A program whose bytes the fuzzer changes."""
    return program(session_workplace / "victim", GLIBC, "libc.so.6", "libm.so.6", "/absent/a.so")


@given(data=st.data())
@settings(
    max_examples=300, deadline=3000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_not_understood_and_no_more(victim: Path, data: st.DataObject) -> None:
    """Whatever the bytes, reading is quick, raises nothing and keeps little."""
    content = bytearray(victim.read_bytes())
    # The headers and the dynamic segment are where a change hurts.
    places = st.one_of(st.integers(0, 0x400), st.integers(0, len(content) - 1))
    values = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
    for at, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=24)):
        content[at] = value
    cut = data.draw(st.none() | st.integers(0, len(content)))
    damaged = victim.with_name("damaged")
    damaged.write_bytes(content[:cut])
    image = elf.read(bytes(damaged))
    if image is not None:
        assert sum(map(len, image.needed)) <= elf.STRINGS
        quick_missing = libraries._Search(
            bytes(damaged), image, GLIBC.encode(), data.draw(st.booleans()), {}, False
        )
        assert all(isinstance(miss, Missing) for miss in quick_missing.run())


@given(content=st.binary(max_size=512))
@settings(max_examples=200, deadline=1000)
def test_garbage_behind_the_magic_is_not_understood(content: bytes) -> None:
    """Garbage that calls itself ELF is None or an image, never an exception."""
    descriptor = os.memfd_create("garbage")
    try:
        os.write(descriptor, b"\x7fELF" + content)
        elf.read(f"/proc/self/fd/{descriptor}".encode())
    finally:
        os.close(descriptor)


def test_more_program_headers_than_a_kernel_takes(victim: Path) -> None:
    """A file that claims 65534 headers is not understood, whatever it holds."""
    content = bytearray(victim.read_bytes())
    content[56:58] = b"\xfe\xff"  # e_phnum
    huge = victim.with_name("huge")
    huge.write_bytes(content + bytes(65534 * 56))
    assert elf.read(bytes(victim)) is not None
    assert elf.read(bytes(huge)) is None


def test_fifos_and_devices_are_not_opened(workplace: Path) -> None:
    """A fifo, on which opening would wait, is not understood."""
    os.mkfifo(workplace / "libfifo.so")
    assert elf.read(bytes(workplace / "libfifo.so")) is None
