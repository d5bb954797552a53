"""The items of the host fallback, each with its mirror image; see `fallback`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.matrix.fallback import After, Item, mirrored

__all__ = ["ITEMS"]


def _pair(
    item: Item,
    rule: str,
    after: After,
    elsewhere: Mapping[str, After] | None = None,
    more_needs: frozenset[str] = frozenset(),
) -> tuple[Item, Item]:
    return item, mirrored(item, rule, after, elsewhere or {}, more_needs)


def _said(name: str) -> str:
    """What the script of `programs` says about itself; found by PATH, it has its whole path."""
    found = (f"/tmp/{name}/s/say {letter}" for letter in "cdef")
    return " ".join(["s/say a ../s/say b", *found])


_READING = (
    *_pair(
        Item(
            "over",
            "Where both layers have the path the sysroot's entry is seen, and is what is listed.",
            "f=one d/g=one",
            "f=other d/h=other",
            "see f d/g d/h; ls d",
            After("one one other g"),
        ),
        "The same with the layers exchanged.",
        After("other one other h"),
    ),
    *_pair(
        Item(
            "missing-intermediate",
            "Where the sysroot has only var, var/folders is the host's; var lists the sysroot.",
            "var/",
            "var/folders/x/f=other",
            "see var/folders/x/f; ls var; ls var/folders",
            After("other x"),
        ),
        "What the sysroot holds needs no host.",
        After("other folders x"),
    ),
    *_pair(
        Item(
            "missing-last",
            "A name that a directory of the sysroot lacks is the host's; a new one is not.",
            "etc/passwd=one",
            "etc/resolv.conf=other",
            "see etc/resolv.conf; ls etc; printf new >etc/hosts; ls etc",
            After("other passwd hosts passwd", sysroot="etc/passwd=one etc/hosts=new"),
        ),
        "The sysroot's own name is seen, and a new one goes beside it.",
        After("other resolv.conf hosts resolv.conf", sysroot="etc/resolv.conf=other etc/hosts=new"),
    ),
    *_pair(
        Item(
            "mktemp",
            "In a directory that only the host has, cat, ls, cp, env and nice do as anywhere.",
            None,
            "a=other d/b=other",
            """cat $PWD/a; echo; ls $PWD; cp $PWD/a $PWD/c; cp -r d e
env cat a; echo " $?"; nice cat e/b; echo " $?"; env -C $PWD ls d; stat -c %s c; pwd""",
            After(
                "other a d other 0 other 0 b 5 /tmp/mktemp",
                host="a=other d/b=other c=other e/b=other",
            ),
        ),
        "In a directory that only the sysroot has they do the same there.",
        After(
            "other a d other 0 other 0 b 5 /tmp/mktemp-mirrored",
            sysroot="a=other d/b=other c=other e/b=other",
        ),
    ),
    *_pair(
        Item(
            "no-directory",
            "Where the sysroot has a file, nothing is below it, whatever the host has there.",
            "p=one",
            "p/x=other",
            "see p p/x; try ls p/x; [ ! -d p ] || echo directory",
            After("one absent no"),
        ),
        "A directory of the sysroot is one although the host has a file.",
        After("absent other yes directory"),
    ),
    *_pair(
        Item(
            "dotdot",
            ".. of a directory that only the host has is the guest's parent, the sysroot's.",
            "f=one",
            "f=other s/t/g=other",
            "see s/../f s/t/../../f; cd s/t; see g ../../f; ls ../..; pwd; cd ..; see ../f; pwd",
            After("one one other one f /tmp/dotdot/s/t one /tmp/dotdot/s"),
        ),
        "All of it in the sysroot is the sysroot's.",
        After("other other other other f s /tmp/dotdot-mirrored/s/t other /tmp/dotdot-mirrored/s"),
    ),
    *_pair(
        Item(
            "find",
            "An enumeration never wanders onto the host; a path that is named does.",
            "d/a=one",
            "d/b=other e/c=other",
            "find . | sort; find e | sort; see d/*; du -a e | wc -l",
            After(". ./d ./d/a e e/c one 2"),
        ),
        "The same with the layers exchanged.",
        After(". ./d ./d/b ./e ./e/c e e/c other 2"),
    ),
    *_pair(
        Item(
            "link-to-the-other",
            "A link's target is walked in the guest: from the sysroot's link to the host's file.",
            "l->etc/f d/up->../etc/f",
            "etc/f=other",
            "see l d/up; readlink l d/up; stat -L -c %s l; cd d; see up; printf more >>up; see up",
            After("other other etc/f ../etc/f 5 other othermore", host="etc/f=othermore"),
        ),
        "And from the host's link to the sysroot's file.",
        After("other other etc/f ../etc/f 5 other othermore", sysroot="etc/f=othermore"),
    ),
    *_pair(
        Item(
            "absolute-link",
            "An absolute link means the guest's root, in whichever layer it lies.",
            "a/sh->/bin/sh",
            "b/sh->/bin/sh b/top->/",
            "[ $(readlink -f a/sh) = $(readlink -f b/sh) ] && echo same; a/sh -c 'echo ran'; "
            "b/sh -c 'echo ran'; cmp b/top/etc/passwd /etc/passwd; readlink b/top",
            After("same ran ran /"),
        ),
        "The same with the layers exchanged.",
        After("same ran ran /"),
    ),
    *_pair(
        Item(
            "twin-follows-the-hosts-links",
            "The host's directory at lib is where the host's link lib leads.",
            "lib/y=one",
            "lib->usr/lib usr/lib/x=other",
            "see lib/x lib/y usr/lib/x; ls lib",
            After("other one other y"),
        ),
        "The sysroot's link lib is walked in the guest: the host's own lib is not asked.",
        After("other absent other x"),
    ),
    *_pair(
        Item(
            "programs",
            "Programs of one layer run with an interpreter of the other, by path and by PATH.",
            "i/",
            "s/",
            """cp -L /bin/sh i/sh; printf '#!%s/i/sh\\necho $0 "$@"' "$PWD" >s/say; chmod 755 s/say
s/say a; cd i; ../s/say b; PATH=$PATH:$OLDPWD/s; cd /; say c; env say d; (exec say e); nice say f
rm "$OLDPWD/sh" "$OLDPWD/../s/say\"""",
            After(_said("programs")),
        ),
        "The script in the sysroot, its interpreter on the host.",
        After(_said("programs-mirrored")),
    ),
)

_CHANGING = (
    *_pair(
        Item(
            "create",
            "What is made in a directory that only the host has is made there.",
            "here/",
            "there/d/",
            "printf new >there/f; mkdir there/e; printf new >there/d/g; mkdir -p there/x/y; "
            "ls there; printf new >here/f; ls here; try mkdir gone/d",
            After(
                "d e f x f no",
                sysroot="here/f=new",
                host="there/f=new there/e/ there/d/g=new there/x/y/",
            ),
        ),
        "What is made in a directory of the sysroot is made there.",
        After(
            "d e f x f no",
            sysroot="there/f=new there/e/ there/d/g=new there/x/y/",
            host="here/f=new",
        ),
    ),
    *_pair(
        Item(
            "create-links",
            "Links that are made in a directory of the host are the host's.",
            None,
            "f=other",
            "ln -s f s; ln f h; see s h; stat -c %h f h; readlink s",
            After("other other 2 2 f", host="f=other s->f h=other"),
        ),
        "And in one of the sysroot the sysroot's.",
        After("other other 2 2 f", sysroot="f=other s->f h=other"),
        more_needs=frozenset({"hard-links"}),
    ),
    *_pair(
        Item(
            "remove",
            "unlink and rmdir in a directory of the host change the host.",
            "keep=one",
            "d/f=other d/e/ d/g=other",
            "rm d/f; rmdir d/e; ls d; try rmdir d; rm -r d; ls; try ls d",
            After("g no keep no", host=""),
        ),
        "And in one of the sysroot the sysroot.",
        After("g no no", sysroot=""),
    ),
    *_pair(
        Item(
            "rename",
            "A rename inside a directory of the host is the host's, also onto what is there.",
            "keep=one",
            "d/f=other d/g=gone d/e/h=other",
            "mv d/f d/g; mv d/e d/E; see d/g d/E/h; try mv -T d/g d/E; ls d",
            After("other other no E g", host="d/g=other d/E/h=other"),
        ),
        "And in one of the sysroot the sysroot's.",
        After("other other no E g", sysroot="d/g=other d/E/h=other"),
    ),
    *_pair(
        Item(
            "write",
            "A file that fell back is changed where it lies: on the host.",
            "etc/",
            "etc/f=other",
            "printf +more >>etc/f; see etc/f; chmod 640 etc/f; stat -c %a etc/f; ls etc; "
            "truncate -s 5 etc/f",
            After("other+more 640", host="etc/f=other(640)"),
        ),
        "The sysroot's file is changed in the sysroot.",
        After("other+more 640 f", sysroot="etc/f=other(640)"),
        more_needs=frozenset({"modes"}),
    ),
    *_pair(
        Item(
            "shadow",
            "A rename onto a name that only the host has goes into the sysroot over the host's.",
            "etc/new=one",
            "etc/conf=other",
            "see etc/conf; mv etc/new etc/conf; see etc/conf; ls etc; rm etc/conf; see etc/conf; "
            "printf two >etc/new; mv etc/new etc/conf; see etc/conf",
            After("other one conf other two", sysroot="etc/conf=two"),
        ),
        "From the host onto the sysroot's file it is another file system: mv copies and removes.",
        After("other one conf absent two", sysroot="etc/conf=two", host="etc/"),
    ),
    *_pair(
        Item(
            "save",
            "Saving by a new file and a rename leaves the host's file as it was, shadowed.",
            "",
            "f=other",
            "printf new >f.tmp; mv f.tmp f; see f; ls; printf newer >f; see f",
            After("new f newer", sysroot="f=newer"),
        ),
        "The sysroot's file is replaced.",
        After("new f newer", sysroot="f=newer"),
    ),
    *_pair(
        Item(
            "unshadow",
            "When the sysroot's entry goes the host's shows again; the next removal is the host's.",
            "f=one d/",
            "f=other d/x=other",
            "see f; rm f; see f; ls d; try rmdir d; ls d; see d/x; rm f; see f",
            After("one other yes x other absent", sysroot="", host="d/x=other"),
        ),
        "The same with the layers exchanged.",
        After("other one x no x other absent", sysroot="d/x=other", host="d/"),
    ),
    *_pair(
        Item(
            "move-away",
            "The old name of a moved directory is the host's again; at its new one it has no twin.",
            "d/y=one",
            "d/x=other",
            "see d/x d/y; mv d e; see e/x e/y d/x d/y; ls d; ls e",
            After("other one absent one other absent x y", sysroot="e/y=one"),
        ),
        "The same with the layers exchanged.",
        After("other one other absent absent one y x", sysroot="e/x=other"),
    ),
    *_pair(
        Item(
            "exdev",
            "A link across the layers is refused, and mv copies.",
            "a/f=one",
            "b/g=other",
            "try ln a/f b/f; try ln b/g a/g; ls a b; mv a/f b/f; mv b/g a/g; see a/g b/f; "
            "chmod 644 b/f a/g 2>/dev/null",
            After("no no a: f b: g other one", sysroot="a/g=other", host="b/f=one"),
        ),
        "The same with the layers exchanged.",
        After("no no a: f b: g other one", sysroot="b/f=one", host="a/g=other"),
    ),
    *_pair(
        Item(
            "exclusive",
            "A name that the host has is taken for O_EXCL, mkdir and links.",
            "",
            "f=other d/",
            "set -C; try sh -C -c ': >f'; try mkdir f; try mkdir d; try ln -s x f; see f",
            After("no no no no other"),
        ),
        "And so is the sysroot's.",
        After("no no no no other"),
    ),
    *_pair(
        Item(
            "remove-tree",
            "rm -r of a directory of the sysroot removes what that lists, never the host's.",
            "d/a=one d/s/b=one",
            "d/a=other d/c=other d/s/x=other",
            "rm -r d; find d | sort",
            After("d d/a d/c d/s d/s/x", sysroot=""),
        ),
        "The same with the layers exchanged.",
        After("d d/a d/s d/s/b", sysroot=""),
    ),
)

_SPELLING = (
    *_pair(
        Item(
            "wrong-case",
            "A wrong spelling is absent where the volume folds, although the host has it; where "
            "it does not fold, it is another name, which falls back.",
            "makefile=one",
            "MAKEFILE=other",
            "see makefile MAKEFILE; try rm MAKEFILE; try truncate -c -s 0 MAKEFILE; "
            "try mv MAKEFILE x; ls",
            After("one absent no yes no makefile"),
            elsewhere={
                "ext4": After("one other yes yes no makefile", host=""),
            },
        ),
        "The same with the layers exchanged; a volume that does not keep case has makefile.",
        After("absent other yes yes no", sysroot=""),
        elsewhere={
            "ext4": After("one other yes yes no", sysroot=""),
            "lowntfs": After("other absent no yes no makefile", sysroot="makefile=other"),
        },
    ),
    *_pair(
        Item(
            "wrong-case-within",
            "A wrong spelling in the middle of a path is absent, for reads and changes.",
            "dir/f=one",
            "DIR/f=other DIR/g=other",
            "see DIR/f DIR/g dir/g; try ls DIR; try mkdir DIR/new; try rm DIR/g; try touch DIR/n; "
            "try mv dir/f DIR/f",
            After("absent absent absent no no no no no"),
            elsewhere={
                "ext4": After(
                    "other other absent yes yes yes yes yes",
                    sysroot="dir/",
                    host="DIR/f=one DIR/new/ DIR/n=",
                )
            },
        ),
        "The same with the layers exchanged: DIR is the sysroot's and right, dir is not.",
        After("other other absent yes yes yes yes no", sysroot="DIR/f=other DIR/new/ DIR/n="),
        elsewhere={
            "ext4": After(
                "other other absent yes yes yes yes yes",
                sysroot="DIR/f=one DIR/new/ DIR/n=",
                host="dir/",
            ),
            # It is stored as dir, so DIR is the wrong one.
            "lowntfs": After(
                "absent absent other no no no no no", sysroot="dir/f=other dir/g=other"
            ),
        },
    ),
    # Without a mirror image: a volume that folds has no such pair to begin with.
    Item(
        "create-in-another-case",
        "A wrong spelling can be made: in the sysroot, where no host's entry is seen below it.",
        "dir/",
        "DIR/x=other dir/x=other",
        "try mkdir DIR; see dir/x DIR/x; printf new >DIR/y; mkdir DIR/d; see DIR/d/x; ls DIR",
        After("yes other absent absent d y", sysroot="dir/ DIR/y=new DIR/d/"),
        elsewhere={
            "ext4": After(
                "no other other absent d x y", host="dir/x=other DIR/x=other DIR/y=new DIR/d/"
            )
        },
    ),
    *_pair(
        Item(
            "removal-frees-the-name",
            "When the entry goes that claimed it, the other spelling is the host's again.",
            "f=one",
            "F=other",
            "see F f; rm -f f; see F f; printf new >f; see F f; mv f g; see F f",
            After("absent one other absent absent new other absent", sysroot="g=new"),
            elsewhere={
                "ext4": After("other one other absent other new other absent", sysroot="g=new")
            },
        ),
        "The same with the layers exchanged: f is claimed by F, and made in the sysroot.",
        After("other absent other absent other new other absent", sysroot="F=other g=new"),
        elsewhere={
            "ext4": After(
                "other one other absent other new other absent", sysroot="F=other g=new", host=""
            ),
            # It is stored as f, which goes; then f is the host's.
            "lowntfs": After(
                "absent other absent one absent new absent absent", sysroot="g=new", host=""
            ),
        },
    ),
    *_pair(
        Item(
            "case-rename",
            "A rename that changes only case is the sysroot's, also where the host has the new "
            "spelling; that stays as it is, shadowed.",
            "f=one",
            "F=other",
            "try mv f F; see F; ls; rm F; see F",
            After("yes one F other", sysroot=""),
        ),
        "The same with the layers exchanged: where the volume folds, f is claimed by F.",
        After("no other F absent", sysroot=""),
        elsewhere={
            "ext4": After("yes one F absent", sysroot="", host=""),
            "lowntfs": After("yes other F absent", sysroot=""),
        },
    ),
)

_POLICY = (
    *_pair(
        Item(
            "read-only-host",
            "With host_writes=ro nothing of the host changes; the sysroot does.",
            "d/f=one",
            "d/g=other e/h=other",
            "see d/g; try sh -c 'echo >>d/g'; try rm d/g; try touch e/new; try mkdir e/d; "
            "try mv e/h e/i; try chmod 600 d/g; printf new >d/new; try rm d/f; ls d",
            After("other no no no no no no yes new", sysroot="d/new=new"),
            options=("host_writes=ro",),
        ),
        "The same with the layers exchanged: what was the host's can be changed now.",
        After("other yes yes yes yes yes no no new", sysroot="d/new=new e/new= e/d/ e/i=other"),
    ),
    *_pair(
        Item(
            "no-fallback",
            "With fallback=none there is only the sysroot.",
            "d/f=one",
            "d/g=other e/h=other",
            "see d/f d/g e/h; try mkdir e; printf new >d/g; ls d e",
            After("one absent absent yes d: f g e:", sysroot="d/f=one d/g=new e/"),
            options=("fallback=none",),
        ),
        "The same with the layers exchanged.",
        After("absent other other no d: g e: h", sysroot="d/g=new e/h=other"),
    ),
    *_pair(
        Item(
            "deny",
            "Below a prefix that is denied there is only the sysroot, beside it both.",
            "d/f=one e/",
            "d/g=other e/h=other",
            "see d/f d/g e/h; printf new >d/g; ls d",
            After("one absent other f g", sysroot="d/f=one d/g=new e/"),
            options=("deny={here}/d",),
        ),
        "The same with the layers exchanged.",
        After("absent other other g", sysroot="d/g=new e/h=other"),
    ),
    *_pair(
        Item(
            "union",
            "With listing=union a directory lists both layers, each name once.",
            "d/f=one d/g=one",
            "d/g=other d/h=other",
            "ls . d; see d/g; rm d/g; ls d; see d/g; find . | sort",
            After(".: d d: f g h one f g h other . ./d ./d/f ./d/g ./d/h", sysroot="d/f=one"),
            options=("listing=union",),
        ),
        "The same with the layers exchanged.",
        After(".: d d: f g h other f g h one . ./d ./d/f ./d/g ./d/h", sysroot="d/h=other"),
    ),
)

ITEMS: Final = _READING + _CHANGING + _SPELLING + _POLICY
