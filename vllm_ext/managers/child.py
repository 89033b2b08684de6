"""Loading a plugin in a child process with a time limit: a hang, an exit or a crash is a result there, no accident."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from vllm_ext.config.redaction import scrub, secrets_in
from vllm_ext.errors import EngineError
from vllm_ext.managers.child_report import PIPE_CLOSED, ChildReport
from vllm_ext.managers.new_python import KEPT_OUTPUT_BYTES, describe_end, end_group, has_ended, start_python
from vllm_ext.plan import Decision, Outcome, Plan, plan_to_dict

_MAIN = "from vllm_ext.managers.child_main import main; main(int(sys.argv[1]))"
_GRACE_S = 3.0
"""The child ends itself at the time limit, with its stack; a child that cannot is killed so much later."""
_START_S = 60.0
"""What the start of the child itself may take, before its time limit begins; much, for a machine that is busy."""
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
    registered: tuple[str, ...] = ()
    """What it added to the registries, or replaced there; one sentence each, without its subject."""
    class_paths: tuple[tuple[str, str], ...] = ()
    """Of what it registered by a path, to be imported when it is needed: what, and the path."""
    again: Outcome | None = None
    """Of a second call, where one was asked for and there is something to call."""


def load_in_child(plan: Plan, decision: Decision, timeout_s: float | None = None, *, again: bool = False) -> LoadReport:
    """Load and use one plugin in a process of its own; never raises for what the plugin does.

    Args:
        plan: the settings and other plugins that it may ask for.
        decision: the plugin; it is imported whatever its status, so that is the caller's to decide.
        timeout_s: seconds for the plugin, once the process is up; ``probe.timeout_s`` where not given.
        again: call it a second time where it works, with as many seconds once more.

    Raises:
        EngineError: no child process can be started.
    """
    return _Child(plan, decision, plan.settings.probe.timeout_s if timeout_s is None else timeout_s, again).run()


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
        try:
            return list(pool.map(run, children))
        except BaseException:
            for child in children:
                child.stop()
            pool.shutdown(cancel_futures=True)
            raise


class _Child:
    """One child process: started, watched, and ended together with its process group."""

    def __init__(self, plan: Plan, decision: Decision, timeout_s: float, again: bool = False) -> None:
        self._plan = plan
        self._decision = decision
        self._timeout_s = timeout_s
        self._again = again
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._is_killed = False
        self._output = bytearray()
        self._num_output_bytes = 0
        self._reports: list[ChildReport] = []
        self._began: float | None = None
        """When the child, its own start done, turned to the plugin, or did so again."""

    def run(self) -> LoadReport:
        """Start the child and wait for its end; whatever breaks that off ends the child."""
        started = time.monotonic()
        readers = self._start()
        try:
            self._watch(started)
        finally:
            code = self._end()
        for reader in readers:
            # A process that left the group may hold the pipe open; nobody waits for it.
            reader.join(1.0)
        return self._report(code, time.monotonic() - started)

    def stop(self) -> None:
        """Let :meth:`run` end soon; called from another thread."""
        self._is_stopped = True

    def _start(self) -> list[threading.Thread]:
        report_out, report_in = os.pipe()
        try:
            self._process = self._start_process(report_in)
        except BaseException:
            os.close(report_out)
            raise
        finally:
            os.close(report_in)
        readers = [
            threading.Thread(target=self._read_output, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_reports, args=(os.fdopen(report_out, "rb"),), daemon=True),
        ]
        for reader in readers:
            reader.start()
        return readers

    def _start_process(self, report_in: int) -> subprocess.Popen[bytes]:
        values = {
            "plan": plan_to_dict(self._plan),
            "key": self._decision.key,
            "timeout_s": self._timeout_s,
            "again": self._again,
        }
        with tempfile.TemporaryFile() as request:
            request.write(json.dumps(values).encode())
            request.seek(0)
            try:
                return start_python(
                    _MAIN,
                    [str(report_in)],
                    stdin=request,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(report_in,),
                )
            except OSError as error:
                raise EngineError(f"no child process can be started to load plugins: {error}") from error

    def _watch(self, started: float) -> None:
        """Wait until the process ends, is too late, or is to be stopped."""
        assert self._process is not None
        while not has_ended(self._process):
            limit = started + _START_S if self._began is None else self._began + self._timeout_s + _GRACE_S
            if time.monotonic() >= limit or self._is_stopped:
                self._is_killed = True
                return
            time.sleep(0.01)

    def _end(self) -> int:
        """Kill what is left of the process group; returns the exit code."""
        assert self._process is not None
        return end_group(self._process)

    def _read_output(self, pipe: Any) -> None:
        with pipe:
            while chunk := pipe.read1(1 << 16):
                self._num_output_bytes += len(chunk)
                self._output += chunk
                del self._output[:-KEPT_OUTPUT_BYTES]

    def _read_reports(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._began = self._began or time.monotonic()
                # A plugin may write into any descriptor; what is no report of ours is none.
                with contextlib.suppress(ValueError, UnicodeDecodeError):
                    self._reports.append(msgspec.json.decode(line, type=ChildReport))
                    if self._reports[-1].stage == "used":
                        self._began = time.monotonic()

    def _report(self, code: int, seconds: float) -> LoadReport:
        output = scrub(bytes(self._output).decode("utf-8", "replace"), secrets_in(self._plan.settings))
        last = next((report for report in self._reports if report.stage == "used"), None)
        if last is None and not self._reports and not self._is_stopped:
            end = (
                f"did not begin within {_START_S:g} s" if self._is_killed else f"ended with code {code} before it began"
            )
            raise EngineError(f"the child process that loads plugins {end}:\n{output}")
        if last is None:
            outcome = Outcome(
                self._decision.key, "failed", self._describe_end(code, output), output or None, None, seconds
            )
            return LoadReport(self._decision, outcome, output=output)
        effects: Sequence[str] = last.effects
        if self._num_output_bytes >= _LOUD_BYTES:
            effects = [*effects, f"writes {self._num_output_bytes / 1e6:.1f} MB to standard output and error"]
        outcome = msgspec.convert(last.outcome, Outcome)
        again = self._second_outcome(code, output)
        return LoadReport(
            self._decision,
            outcome,
            tuple(effects),
            last.imports_torch,
            output,
            last.registered,
            last.class_paths,
            again,
        )

    def _second_outcome(self, code: int, output: str) -> Outcome | None:
        """What became of the second call; ``None`` where there was none."""
        report = next((report for report in self._reports if report.stage == "again"), None)
        if report is None and self._again:
            return Outcome(self._decision.key, "failed", self._describe_end(code, output), output or None)
        return None if report is None or report.outcome is None else msgspec.convert(report.outcome, Outcome)

    def _describe_end(self, code: int, output: str) -> str:
        stages = {report.stage for report in self._reports}
        when = "when it was called" if "imported" in stages else "while it was imported"
        if "used" in stages:
            when = "when it was called again"
        if code == PIPE_CLOSED:
            return f"it closed the pipe through which it is watched, {when}"
        return f"{describe_end(None if self._is_killed else code, output, self._timeout_s)} {when}"
