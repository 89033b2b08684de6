"""On a terminal a person sees the weights load, the text grow, and what it ran on."""

import os
import pty
import subprocess
import sys
import termios

# So many tokens that the text takes longer than this process may be kept from reading it.
ARGUMENTS = ["-m", "vllm_ext.cli.main", "run", "It was", "--max-tokens", "400", "--seed", "2"]


def run_on_terminal():
    """The command on a pseudo-terminal; returns its exit code, and its output as it came, piece by piece."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen([sys.executable, *ARGUMENTS], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    pieces = []
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            piece = b""
        if not piece:
            break
        pieces.append(piece)
    os.close(master)
    return process.wait(), pieces


def test_progress_streamed_text_and_a_summary():
    code, pieces = run_on_terminal()

    text = b"".join(pieces).decode()
    with_text = [piece for piece in pieces if b"Loading" not in piece]
    assert code == 0
    assert "Loading weights: 100%" in text
    assert len(with_text) > 5, "the text came in one piece"
    assert "It was" in text
    assert "[platform 'cpu': 400 tokens," in text
