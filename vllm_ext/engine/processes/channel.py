"""Messages between two processes, over a pair of connected sockets that no third one can reach."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import NamedTuple

_HEADER = struct.Struct("<QB")
_CHUNK = 1 << 20
_AHEAD = 1 << 14
"""What is read at once where less is wanted: a message of a step, with its header, in one go."""
_NOTHING = memoryview(b"")


class Frame(NamedTuple):
    """One message: what kind it is, and its content."""

    kind: int
    content: bytes | memoryview


class Channel:
    """Whole messages in both directions; any thread may send, while one receives.

    Args:
        end: one of two connected stream sockets; it is the channel's from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        self._ahead = _NOTHING

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
        return bool(self._ahead)

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

    def receive(self) -> Frame:
        """Wait for the next message; EOFError where the other side is gone."""
        length, kind = _HEADER.unpack(self._read(_HEADER.size))
        return Frame(kind, self._read(length))

    def hang_up(self) -> None:
        """Tell the other side that nothing more comes: its :meth:`receive` ends, as does one that waits here."""
        with contextlib.suppress(OSError):
            # The other side may have hung up already.
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and release the socket; may be called twice."""
        self.hang_up()
        self._socket.close()

    def _read(self, length: int) -> memoryview:
        if len(self._ahead) < length:
            self._ahead = self._read_more(length)
        content, rest = self._ahead[:length], self._ahead[length:]
        # An empty part of a large message would keep all of it.
        self._ahead = rest if rest else _NOTHING
        return content

    def _read_more(self, length: int) -> memoryview:
        """At least so many bytes: those that were read ahead, and what follows them."""
        buffer = memoryview(bytearray(max(length, _AHEAD)))
        done = len(self._ahead)
        buffer[:done] = self._ahead
        while done < length:
            try:
                count = self._socket.recv_into(buffer[done:])
            except ConnectionResetError:
                count = 0
            if not count:
                raise EOFError("the other process has closed the connection")
            done += count
        return buffer[:done]
