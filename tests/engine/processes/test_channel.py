"""Whole messages over a socket, whatever its pieces are."""

from __future__ import annotations

import random
import signal
import struct
import threading
import time
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ext.engine.processes.channel import Channel, Frame


@pytest.fixture
def ends():
    here, there = Channel.pair()
    other = Channel(there)
    yield here, other
    here.close()
    other.close()


def test_large_frames_of_several_threads_arrive_whole(ends):
    here, other = ends
    size = (1 << 21) + 7
    threads = [threading.Thread(target=here.send, args=(Frame(n, bytes([n]) * size),), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()

    got = {kind: bytes(content) for kind, content in (other.receive() for _ in threads)}

    assert got == {n: bytes([n]) * size for n in range(4)}


def test_a_closed_peer_ends_a_receive_and_fails_a_send(ends):
    here, other = ends
    other.close()

    with pytest.raises(EOFError):
        here.receive()
    with pytest.raises(OSError):
        here.send(Frame(1, b"x"))


def test_a_last_message_is_given_up_where_the_other_side_reads_nothing(ends):
    here, other = ends
    here.send_before(Frame(1, b"first"), time.monotonic() + 60)
    large = Frame(2, bytes(1 << 22))
    sender = threading.Thread(target=here.send, args=(large,), daemon=True)
    sender.start()
    while not here._sending.locked():
        time.sleep(0.001)

    with pytest.raises(TimeoutError, match="another message is not taken"):
        here.send_before(Frame(3, b"last"), time.monotonic() + 0.01)
    assert other.receive() == Frame(1, b"first")
    assert other.receive() == large
    sender.join()
    with pytest.raises(TimeoutError, match="reads nothing"):
        here.send_before(large, time.monotonic() + 0.01)


def test_a_message_cut_off_in_the_middle_is_not_taken_for_a_whole_one():
    here, there = Channel.pair()
    there.sendall(b"\x10" + b"\0" * 7 + b"\x01" + b"half")
    there.close()

    with pytest.raises(EOFError):
        here.receive()
    here.close()


def test_messages_of_any_size_that_wait_together_are_received_one_by_one(ends):
    here, other = ends
    contents = [b"", b"a", b"b" * 20_000, b"c" * 16_375, b"d" * 16_384, b"e" * 50_000, b"f"]
    for kind, content in enumerate(contents):
        here.send(Frame(kind, content))

    got = [other.receive() for _ in contents]

    assert [(kind, bytes(content)) for kind, content in got] == list(enumerate(contents))
    assert not other.has_read_ahead


def test_a_message_that_was_read_with_the_one_before_is_told_of(ends):
    here, other = ends
    here.send(Frame(1, b"first"))
    here.send(Frame(2, b"second"))

    other.receive()

    assert other.has_read_ahead
    assert bytes(other.receive().content) == b"second"
    assert not other.has_read_ahead


def test_a_message_that_came_before_the_peer_closed_is_still_received(ends):
    here, other = ends
    here.send(Frame(1, b"first"))
    here.send(Frame(2, b"last"))
    here.close()

    assert [bytes(other.receive().content) for _ in range(2)] == [b"first", b"last"]
    with pytest.raises(EOFError):
        other.receive()


def test_a_receive_that_is_interrupted_in_the_middle_of_a_message_goes_on_where_it_was(ends):
    here, other = ends
    content = random.Random(1).randbytes(450_000)
    message = struct.pack("<QB", len(content), 3) + content

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Where it waits, and not on the way there or back, however late that is.
        if frame is not None and frame.f_code is Channel._wait_for.__code__:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        for part in [message[i : i + 100_000] for i in range(0, len(message), 100_000)][:-1]:
            here._socket.sendall(part)
            with pytest.raises(KeyboardInterrupt):
                other.receive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    here._socket.sendall(message[-(len(message) % 100_000) :])
    here.send(Frame(4, b"next"))

    assert other.receive() == Frame(3, content)
    assert other.receive() == Frame(4, b"next")
    assert not other.has_read_ahead


@given(st.lists(st.integers(0, 1 << 15), max_size=20))
def test_messages_of_any_sizes_arrive_as_they_were_sent(sizes):
    here, there = Channel.pair()
    other = Channel(there)
    frames = [Frame(number, bytes([number]) * size) for number, size in enumerate(sizes)]
    sender = threading.Thread(target=lambda: [here.send(frame) for frame in frames], daemon=True)
    sender.start()

    got = [other.receive() for _ in frames]

    sender.join()
    # Also those that share a buffer with later ones.
    assert got == frames
    here.close()
    other.close()
