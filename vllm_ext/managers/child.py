"""Loading a plugin in a child process with a time limit: a hang, an exit or a crash is a result there, no accident."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from vllm_ext.errors import EngineError
from vllm_ext.plan import Decision, Outcome, Plan, plan_to_dict

_START = "import sys; sys.path[:] = sys.argv[2:]; from vllm_ext.managers.child_main import main; main(int(sys.argv[1]))"
_GRACE_S = 3.0
"""The child ends itself at the time limit, with its stack; a child that cannot is killed so much later."""
_KEPT_OUTPUT = 16 * 1024
_LOUD_BYTES = 100 * 1024
"""Output worth a word."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a child process found out about one plugin."""

    decision: Decision
    outcome: Outcome
    effects: tuple[str, ...] = ()
    """What it changes in its process besides; one sentence each, without its subject."""
    imports_torch: bool = False
    output: str = ""
    """The end of what it wrote to standard output and standard error."""


def load_in_child(plan: Plan, decision: Decision, timeout_s: float | None = None) -> LoadReport:
    """Load and use one plugin in a process of its own; never raises for what the plugin does.

    Args:
        plan: the settings and other plugins that it may ask for.
        decision: the plugin; it is imported whatever its status, so that is the caller's to decide.
        timeout_s: seconds from the start of the process on; ``probe.timeout_s`` where not given.
    """
    return _Child(plan, decision, plan.settings.probe.timeout_s if timeout_s is None else timeout_s).run()


def load_all_in_children(
    plan: Plan, decisions: Iterable[Decision], on_done: Callable[[], Any] = lambda: None
) -> list[LoadReport]:
    """Load each in a child of its own, as many at a time as there are processors; reports in the order given.

    An interrupt ends all children. ``on_done`` is called after each.
    """
    children = [_Child(plan, decision, plan.settings.probe.timeout_s) for decision in decisions]

    def run(child: _Child) -> LoadReport:
        report = child.run()
        on_done()
        return report

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = [pool.submit(run, child) for child in children]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for child in children:
                child.stop()
            raise


class _Child:
    """One child process: started, watched, and ended with all that it started."""

    def __init__(self, plan: Plan, decision: Decision, timeout_s: float) -> None:
        self._plan = plan
        self._decision = decision
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._output = bytearray()
        self._num_output_bytes = 0
        self._reports: list[dict[str, Any]] = []

    def run(self) -> LoadReport:
        started = time.monotonic()
        readers = self._start()
        is_in_time = self._wait(started + self._timeout_s + _GRACE_S)
        assert self._process is not None
        self._kill_group()
        code = self._process.wait()
        for reader in readers:
            # A process that left the group may hold the pipe open; nobody waits for it.
            reader.join(1.0)
        seconds = time.monotonic() - started
        is_timeout = not is_in_time or (seconds >= self._timeout_s and not self._has_outcome)
        return self._report(code, is_timeout, seconds)

    def stop(self) -> None:
        """End the process, from another thread."""
        self._is_stopped = True
        if self._process is not None:
            self._kill_group()

    @property
    def _has_outcome(self) -> bool:
        return any("outcome" in report for report in self._reports)

    def _start(self) -> list[threading.Thread]:
        report_out, report_in = os.pipe()
        with tempfile.TemporaryFile() as request:
            values = {"plan": plan_to_dict(self._plan), "key": self._decision.key, "timeout_s": self._timeout_s}
            request.write(json.dumps(values).encode())
            request.seek(0)
            # -P: the current directory is on the path only where it is on ours.
            command = [sys.executable, "-P", "-c", _START, str(report_in), *sys.path]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=request,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(report_in,),
                    start_new_session=True,
                )
            except OSError as error:
                os.close(report_out)
                raise EngineError(f"no child process can be started to load plugins: {error}") from error
            finally:
                os.close(report_in)
        assert self._process.stdout is not None
        readers = [
            threading.Thread(target=self._read_output, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_reports, args=(os.fdopen(report_out),), daemon=True),
        ]
        for reader in readers:
            reader.start()
        return readers

    def _wait(self, deadline: float) -> bool:
        """Whether the process ends in time. It is not reaped here, so that its process group cannot be another's."""
        assert self._process is not None
        try:
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() >= deadline or self._is_stopped:
                    return False
                time.sleep(0.01)
        except ChildProcessError:
            # Where the whole program ignores SIGCHLD, the system has reaped it.
            return True
        return True

    def _kill_group(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _read_output(self, pipe: Any) -> None:
        with pipe:
            while chunk := pipe.read1(1 << 16):
                self._num_output_bytes += len(chunk)
                self._output += chunk
                del self._output[:-_KEPT_OUTPUT]

    def _read_reports(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._reports.append(json.loads(line))

    def _report(self, code: int, is_timeout: bool, seconds: float) -> LoadReport:
        output = bytes(self._output).decode("utf-8", "replace")
        last = next((report for report in self._reports if "outcome" in report), None)
        if not self._reports and not is_timeout and not self._is_stopped:
            raise EngineError(f"the child process that loads plugins ended with code {code} before it began:\n{output}")
        if last is None:
            detail = self._describe_end(code, is_timeout)
            outcome = Outcome(self._decision.key, "failed", detail, output or None, seconds=seconds)
            return LoadReport(self._decision, outcome, output=output)
        effects: Sequence[str] = last["effects"]
        if self._num_output_bytes >= _LOUD_BYTES:
            effects = [*effects, f"writes {self._num_output_bytes / 1e6:.1f} MB to standard output and error"]
        outcome = msgspec.convert(last["outcome"], Outcome)
        return LoadReport(self._decision, outcome, tuple(effects), last["imports_torch"], output)

    def _describe_end(self, code: int, is_timeout: bool) -> str:
        when = "when it was called" if {"stage": "imported"} in self._reports else "while it was imported"
        if is_timeout:
            return f"it did not finish within {self._timeout_s:g} s {when}"
        if code < 0:
            return f"it ended the process by {signal.Signals(-code).name} {when}"
        return f"it ended the process with exit code {code} {when}"
