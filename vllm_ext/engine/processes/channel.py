"""Messages between two processes, over a pair of connected sockets that no third one can reach."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import NamedTuple

_HEADER = struct.Struct("<QB")
_CALL_ID = struct.Struct("<Q")
_CHUNK = 1 << 20
_AHEAD = 1 << 14
"""What is read at once where less is wanted: a message of a step, with its header, in one go."""


class _Received(NamedTuple):
    """What has come and was not taken yet: ``buffer[begin:end]``."""

    buffer: memoryview
    begin: int
    end: int


_NOTHING = _Received(memoryview(b""), 0, 0)


class Frame(NamedTuple):
    """One message: what kind it is, and its content."""

    kind: int
    content: bytes | memoryview

    @classmethod
    def numbered(cls, kind: int, call_id: int, body: bytes) -> Frame:
        """A call or its answer. It begins with the call's number, which is known where the rest cannot be read."""
        return cls(kind, _CALL_ID.pack(call_id) + body)

    @property
    def call_id(self) -> int:
        """Of a message that is numbered."""
        (call_id,) = _CALL_ID.unpack_from(self.content)
        return int(call_id)

    @property
    def body(self) -> memoryview:
        """What a message that is numbered has behind the number."""
        return memoryview(self.content)[_CALL_ID.size :]


class Channel:
    """Whole messages in both directions; any thread may send, while one receives.

    Args:
        end: one of two connected stream sockets; it is the channel's from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        # Replaced as a whole: an interrupt may come between any two statements.
        self._received = _NOTHING

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """A channel, and the socket that another process makes its channel of."""
        here, there = socket.socketpair()
        return cls(here), there

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_read_ahead(self) -> bool:
        """Whether the next message, or a part of it, has been read already, so that no poll tells of it."""
        return self._received.begin < self._received.end

    def send(self, frame: Frame) -> None:
        """Send one message; waits while the other side's buffer is full. OSError where the other side is gone."""
        kind, content = frame
        header = _HEADER.pack(len(content), kind)
        with self._sending:
            if len(content) < _CHUNK:
                self._socket.sendall(b"".join((header, content)))
            else:
                self._socket.sendall(header)
                self._socket.sendall(content)

    def send_before(self, frame: Frame, deadline: float) -> None:
        """As :meth:`send`, for the last message of all; waits until ``deadline`` (of ``time.monotonic()``) at most.

        Raises:
            TimeoutError: the other side did not take it, or what was being sent, until then. A part may have been sent.
            OSError: the other side is gone.
        """
        data = b"".join((_HEADER.pack(len(frame.content), frame.kind), frame.content))
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError("another message is not taken by the other process")
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            while data:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError("the other process reads nothing")
                with contextlib.suppress(BlockingIOError):
                    data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
        finally:
            self._sending.release()

    def receive(self) -> Frame:
        """Wait for the next message; EOFError where the other side is gone. An interrupt loses nothing."""
        buffer, begin, _ = self._wait_for(_HEADER.size)
        length, kind = _HEADER.unpack_from(buffer, begin)
        buffer, begin, end = self._wait_for(_HEADER.size + length)
        begin += _HEADER.size
        content = buffer[begin : begin + length]
        begin += length
        # The buffer of a large message is its content's alone.
        self._received = _Received(buffer, begin, end) if begin < end or len(buffer) == _AHEAD else _NOTHING
        return Frame(kind, content)

    def hang_up(self) -> None:
        """Tell the other side that nothing more comes: its :meth:`receive` ends, as does one that waits here."""
        with contextlib.suppress(OSError):
            # The other side may have hung up already.
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and release the socket; may be called twice."""
        self.hang_up()
        self._socket.close()

    def _wait_for(self, size: int) -> _Received:
        """At least so many bytes that were not taken yet."""
        while self._received.end - self._received.begin < size:
            buffer, begin, end = self._received
            if begin + size > len(buffer):
                larger = memoryview(bytearray(max(size, _AHEAD)))
                larger[: end - begin] = buffer[begin:end]
                buffer, begin, end = larger, 0, end - begin
            try:
                count = self._socket.recv_into(buffer[end:])
            except ConnectionResetError:
                count = 0
            if not count:
                raise EOFError("the other process has closed the connection")
            self._received = _Received(buffer, begin, end + count)
        return self._received
