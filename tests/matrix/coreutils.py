"""The cases for GNU coreutils: at least one for each program of the musl guest.

The scripts stand in ``coreutils_cases/*.txt``, as `case_files` reads them. PATH has /usr/bin first,
so every name means GNU's program, but for those that busybox's shell has built in (`BUILT_IN`):
they are run by their path.

No script tries to change anything outside of its directory, not even to be refused: a volume
without owners would let it, and the cases behind it would have another guest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.matrix.case_files import read_cases

__all__ = ["BUILT_IN", "CASES", "PLACE"]

BUILT_IN: Final = frozenset({"[", "echo", "false", "kill", "printf", "pwd", "test", "true"})
"""Programs that the guest's shell would do itself."""
PLACE: Final = "/usr/bin"
"""Where GNU's programs are in the guest; /bin has links to busybox too."""

# Ends in dates that are not now, so that copies can be told from new files.
_TREE: Final = """\
mkdir -p t/sub/deep t/empty
echo one >t/one; echo two >t/sub/two; : >t/sub/deep/nothing
seq 20000 >t/big
chmod 640 t/one; chmod 751 t/sub; chmod 4755 t/sub/two
touch -d '2001-02-03 04:05:06' t/one t/sub/two t/big t/sub/deep/nothing"""

# All file operators but -N, which depends on how the volume is mounted, and -s of a directory,
# whose size is the volume's affair.
_OPERATORS: Final = """\
echo x >f; : >e; mkdir d; chmod 4750 f; chmod 1711 d; touch -d @1000000 e; touch -d @2000000 f
for name in f e d nowhere $MORE; do
    for op in -b -c -d -e -f -g -G -h -k -L -O -p -r -S -u -w -x; do
        BEGIN $op $name END && printf '%s ' $op
    done
    echo $name
done
for name in f e nowhere; do BEGIN -s $name END; echo $?; done
BEGIN f -nt e END; echo $?; BEGIN f -ot e END; echo $?; BEGIN f -ef ./f END; echo $?
BEGIN f -ef e END; echo $?; BEGIN f -nt nowhere END; echo $?; BEGIN d -ef . END; echo $?
BEGIN -t 0 END; echo $?"""

_PIECES: Final = {
    "TREE": _TREE,
    "LINKS": "ln -s one t/link; ln -s ../nowhere t/sub/dangling; ln -s sub t/to-sub",
    # Of the tree's copy in c, where the original has times that were set.
    "TIMES": "(cd c; stat -c '%n %Y' . one big sub sub/two sub/deep/nothing)",
    "AS_USER": "chroot --skip-chdir --userspec=1000:1000 /",
    "ODD": "touch 'a b' 'new\nline' 'tab\there' é 日本語 \"quote'\" 'back\\slash' .hidden '*' "
    "-- -dash=x; mkdir 'dir ectory'; touch \"$(printf '%0255d' 0)\"",
    "TEST": _OPERATORS.replace("BEGIN", f"{PLACE}/test").replace(" END", ""),
    "BRACKET": _OPERATORS.replace("BEGIN", f"{PLACE}/[").replace("END", "]"),
}

CASES: Final = read_cases(Path(__file__).with_name("coreutils_cases"), _PIECES)
