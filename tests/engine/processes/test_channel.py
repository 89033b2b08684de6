"""Whole messages over a socket, whatever its pieces are."""

from __future__ import annotations

import threading

import pytest

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


def test_a_message_cut_off_in_the_middle_is_not_taken_for_a_whole_one():
    here, there = Channel.pair()
    there.sendall(b"\x10" + b"\0" * 7 + b"\x01" + b"half")
    there.close()

    with pytest.raises(EOFError):
        here.receive()
    here.close()
