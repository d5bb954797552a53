"""The channel between the processes of a run."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from sysroot_fs.guest.channel import Channel, Kind, Message


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize("kind", list(Kind))
def test_a_message_comes_as_it_was_sent(ends: tuple[Channel, Channel], kind: Kind) -> None:
    """Kind, number and text are what was sent, blanks, newlines and NULs included."""
    message = Message(kind, 137, b" two words\n\0\xff ")
    assert ends[0].send(message)
    assert ends[1].receive() == message


def test_messages_stay_apart_and_in_order(ends: tuple[Channel, Channel]) -> None:
    """Two messages that wait together are two, the first one first, in both directions."""
    for end, other in (ends, ends[::-1]):
        end.send(Message(Kind.STARTED))
        end.send(Message(Kind.ENDED, 256))
        assert [other.receive(), other.receive()] == [
            Message(Kind.STARTED),
            Message(Kind.ENDED, 256),
        ]


def test_a_text_that_is_too_long_is_cut(ends: tuple[Channel, Channel]) -> None:
    """A text of a megabyte arrives as its beginning, and the next message is whole."""
    ends[0].send(Message(Kind.FAILED, text=b"x" * 1_000_000))
    ends[0].send(Message(Kind.STARTED))
    cut, after = ends[1].receive(), ends[1].receive()
    assert cut is not None and set(cut.text) == {ord("x")} and len(cut.text) > 4096
    assert after == Message(Kind.STARTED)


def test_descriptors_come_along(ends: tuple[Channel, Channel]) -> None:
    """Two descriptors arrive in their order, as the receiver's own, and no child inherits them."""
    reader, writer = os.pipe()
    ends[0].send(Message(Kind.MOUNT, fds=(writer, reader)))
    os.close(reader)
    os.close(writer)
    message = ends[1].receive()
    assert message is not None
    writer, reader = message.fds
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    assert not os.get_inheritable(reader) and not os.get_inheritable(writer)
    os.close(reader)
    os.close(writer)


def test_the_end_comes_after_the_last_message(ends: tuple[Channel, Channel]) -> None:
    """What was sent before the other side closed is heard, then None for ever."""
    ends[0].send(Message(Kind.ENDED, 9))
    ends[0].close()
    assert ends[1].receive() == Message(Kind.ENDED, 9)
    assert ends[1].receive() is None
    assert ends[1].receive() is None


def test_the_end_comes_after_unread_messages_of_our_own(ends: tuple[Channel, Channel]) -> None:
    """A side that closes without having read what came is gone, not an error."""
    ends[0].send(Message(Kind.CONTINUE))
    ends[1].close()
    assert ends[0].receive() is None


def test_sending_to_nobody_is_said(ends: tuple[Channel, Channel]) -> None:
    """Sending to a side that is gone is false, and no signal and no exception."""
    ends[1].close()
    assert not ends[0].send(Message(Kind.STARTED))


def test_who_says_no_more_still_hears(ends: tuple[Channel, Channel]) -> None:
    """After `say_no_more` the other side sees the end, and its answer still arrives."""
    ends[0].say_no_more()
    assert ends[1].receive() is None
    assert ends[1].send(Message(Kind.ENDED, 15))
    assert ends[0].receive() == Message(Kind.ENDED, 15)


def test_saying_no_more_twice_is_no_error(ends: tuple[Channel, Channel]) -> None:
    """Neither twice nor after the other side has gone does `say_no_more` fail."""
    ends[0].say_no_more()
    ends[1].close()
    ends[0].say_no_more()


def test_a_child_does_not_inherit_an_end(ends: tuple[Channel, Channel]) -> None:
    """Both ends close on exec: a program must not be able to speak as its monitor."""
    assert [os.get_inheritable(end.fileno()) for end in ends] == [False, False]


def test_it_can_be_polled(ends: tuple[Channel, Channel]) -> None:
    """An end is readable when a message waits, and when the other side has gone."""

    def readable() -> bool:
        return bool(select.select([ends[1]], [], [], 0)[0])

    assert not readable()
    ends[0].send(Message(Kind.STARTED))
    assert readable()
    ends[1].receive()
    assert not readable()
    ends[0].close()
    assert readable()
