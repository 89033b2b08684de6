"""A process ends with the one that started it, whatever it is doing then."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes import marked_processes, nothing_left, wait_until

PARENT = """
import time
from vllm_ext.engine.processes.child import ChildProcess
child = ChildProcess("child", "of_a_child", {})
time.sleep(3600)
"""
SLEEPS = "print('here', file=sys.stderr, flush=True); time.sleep(3600)"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the processes that the test starts; after it none may be left."""
    with nothing_left(monkeypatch) as made:
        yield made


@contextmanager
def start_parent(folder: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose child's module has this code; its standard error is a pipe. At the end it is killed."""
    (folder / "of_a_child.py").write_text(f"import sys, time\n{textwrap.dedent(code)}")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{PARENT}"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as parent:
        try:
            yield parent
        finally:
            parent.kill()


@pytest.mark.parametrize(
    "code",
    [SLEEPS, f"def main(channel):\n    {SLEEPS}"],
    ids=["imports its module", "computes"],
)
def test_a_child_ends_with_its_parent_while_it(mark, tmp_path, code):
    """The fixture looks for what is left."""
    with start_parent(tmp_path, code) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "here\n"
        assert len(marked_processes(mark)) == 2


@pytest.mark.parametrize("then", ["time.sleep(3600)", "read_start(channel)"], ids=["computes", "waits for it"])
def test_what_a_child_has_started_ends_with_its_parent_too(mark, tmp_path, then):
    code = f"""
    import subprocess
    from vllm_ext.engine.processes.child_main import read_start
    def main(channel):
        subprocess.Popen(["sleep", "3600"])
        print("here", file=sys.stderr, flush=True)
        {then}
    """
    with start_parent(tmp_path, code) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "here\n"
        assert wait_until(lambda: len(marked_processes(mark)) == 3)


def test_a_child_whose_parent_is_gone_before_its_first_message_ends_without_a_traceback(mark, tmp_path):
    code = """
    from vllm_ext.engine.processes.channel import Frame
    from vllm_ext.engine.processes.child_main import read_start, tell
    def main(channel):
        print("here", file=sys.stderr, flush=True)
        tell(channel, Frame(1, b""))
        read_start(channel)
    """
    with start_parent(tmp_path, code) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "here\n"
        parent.kill()

        # To the end of the pipe, which the child has inherited.
        assert parent.communicate(timeout=120)[1] == ""


def test_what_a_child_tells_a_parent_that_is_gone_is_no_error(mark, tmp_path):
    code = """
    from vllm_ext.engine.processes.channel import Frame
    from vllm_ext.engine.processes.child_main import tell
    def main(channel):
        print("here", file=sys.stderr, flush=True)
        try:
            channel.receive()
        except EOFError:
            tell(channel, Frame(1, b""))
            print("told", file=sys.stderr)
    """
    with start_parent(tmp_path, code) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "here\n"
        parent.kill()

        assert parent.communicate(timeout=120)[1] == "told\n"
