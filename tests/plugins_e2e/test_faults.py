"""Every plugin that is wrong, all at once: what is decided on each, what becomes of each, and who is left unharmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.faults import FAULTS, all_folders

GENERAL, PLATFORM = "vllm.general_plugins", "vllm.platform_plugins"
TIMEOUT_S = 20
"""Much, since some import torch, beside others."""


class Fault(NamedTuple):
    """One plugin of the corpus and what is expected of it; text is looked for in reason and detail."""

    folder: str
    status: str = "selected"
    outcome: str = ""
    detail: str = ""
    reason: str = ""
    name: str = ""
    """Where it is not that of the folder."""


SELECTED = [
    Fault("import_error", outcome="failed", detail="ModuleNotFoundError: No module named"),
    Fault("missing_module", outcome="failed", detail="ModuleNotFoundError: No module named 'fault_missing_module'"),
    Fault("missing_attribute", outcome="failed", detail="AttributeError: module 'fault_missing_attribute' has no"),
    Fault("circular_import", outcome="failed", detail="ImportError: cannot import name"),
    Fault("sys_exit_import", outcome="failed", detail="SystemExit"),
    Fault("sys_exit_call", outcome="failed", detail="SystemExit: 0"),
    Fault("os_exit", outcome="failed", detail="it ended the process with exit code 3 while it was imported"),
    Fault("assert_false", outcome="failed", detail="AssertionError"),
    Fault("infinite_recursion", outcome="failed", detail="RecursionError: maximum recursion depth exceeded"),
    Fault("raises", outcome="failed", detail="KeyError"),
    Fault("raises_base_exception", outcome="failed", detail="Stop: stopped by the plugin"),
    Fault("unprintable", outcome="failed", detail="its message cannot be read"),
    Fault("segfaults", outcome="failed", detail="it ended the process by SIGSEGV when it was called"),
    Fault("hangs", outcome="failed", detail=f"it did not finish within {TIMEOUT_S} s when it was called"),
    Fault("hangs_ignoring_sigterm", outcome="failed", detail=f"it did not finish within {TIMEOUT_S} s when it was"),
    Fault(
        "not_callable", outcome="failed", detail="ContractError: general plugin 'not_callable' of fault-not-callable"
    ),
    Fault("not_a_stat_logger", outcome="failed", detail="is not a subclass of vllm_ext.contracts.stat_logger.StatLogg"),
    Fault(
        "not_a_logits_processor", outcome="failed", detail="is not a subclass of vllm_ext.contracts.logits_processor"
    ),
    Fault("no_endpoint", outcome="failed", detail="which has no name, required_tasks, attach_router, init_state"),
    Fault("io_processor_none", outcome="unavailable", detail="it returned None"),
    Fault("prints_megabytes", outcome="active", detail="MB to standard output and error"),
    Fault("changes_sys_path", outcome="active", detail="changes sys.path: adds"),
    Fault("thread_raises", outcome="active", detail="starts a thread that fails: "),
    Fault("replaces_signal_handler", outcome="active", detail="replaces the handlers of signals: SIGINT, SIGTERM"),
    Fault("spawns_child", outcome="active", detail="leaves processes running: "),
    Fault("name_with_spaces", outcome="active", name="name with spaces"),
    Fault("no_metadata", outcome="active"),
    Fault("incompatible_under_extra", outcome="active"),
    Fault("needs_old_vllm", outcome="active"),
    Fault("good", outcome="active"),
    Fault("malformed_entry_points", outcome="active"),
    Fault("duplicate_not_adjacent", outcome="active", name="between_duplicates"),
    Fault("egg_info_shadowing", outcome="failed", detail="AttributeError", name="egg_info_shadowing_stale"),
]
PLATFORMS = [
    Fault("returns_int", "candidate", "failed", "expected a class path 'package.module.Class', got 3"),
    Fault("not_a_class", "candidate", "failed", "is not a subclass of vllm_ext.contracts.platform.Platform"),
    Fault("wrong_platform", "candidate", "failed", "is not a subclass of vllm_ext.contracts.platform.Platform"),
    Fault("path_not_resolving", "candidate", "failed", "ModuleNotFoundError: No module named"),
    Fault("incomplete_platform", "candidate", "failed", "does not set device_type"),
    Fault("touches_current_platform", "candidate", "failed", "platform plugin 'touches_current_platform' asked for"),
    Fault("declines", "candidate", "unavailable", "it returned None: not for this machine"),
    Fault("unavailable", "candidate", "unavailable", "no device in this machine"),
]
NOT_LOADED = [
    Fault("empty_name", "invalid", reason="is not of the form 'name = module:attribute'", name="-"),
    Fault("escape_in_name", "invalid", reason="has characters that cannot be shown", name="escape\x1b[31m_in_name"),
    Fault("malformed_entry_points", "invalid", reason="is not of the form", name="lost_sign fault_malformed_entry_poi"),
    Fault("not_utf8_metadata", "invalid", reason="entry_points.txt is not UTF-8 (byte"),
    Fault("duplicate_adjacent", "duplicate", reason="2 plugins of this group have that name"),
    Fault("duplicate_not_adjacent", "duplicate", reason="2 plugins of this group have that name"),
    Fault("duplicate_one", "duplicate", reason="from fault-duplicate-one, fault-duplicate-two", name="duplicate"),
    Fault("duplicate_two", "duplicate", reason="from fault-duplicate-one, fault-duplicate-two", name="duplicate"),
    Fault("wrong_group", "unknown", reason="vllm_ext has no group 'vllm.general_plugin' (did you mean"),
    Fault("far_group", "unknown", reason="vllm_ext has no group 'vllm.quantum_plugins'"),
    Fault("egg_info_shadowing", "shadowed", reason="comes first on the path and hides this distribution"),
    Fault("incompatible", "incompatible", reason="requires vllm-ext>=99, but vllm-ext"),
]
EVERY = [*SELECTED, *PLATFORMS, *NOT_LOADED]
# Opt-in, or chosen by name: otherwise they are there and not asked for.
ASKED = ("--set", "plugins.endpoint.enabled=[no_endpoint]", "--set", "plugins.io_processor.use=io_processor_none")


# What doctor says of the corpus, besides its table.
FINDINGS = (
    "fault-no-metadata",
    "fault-empty-name",
    "fault-escape-in-name",
    "fault-malformed-entry-points",
    "fault-not-utf8-metadata",
    "'vllm.general_plugin', which nothing reads; 'vllm.general_plugins' is likely meant",
    "unknown group 'vllm.quantum_plugins'",
    "fault_egg_info_shadowing.egg-info",
    "plugin 'incompatible' of fault-incompatible 1.0 is not used",
    "plugin 'needs_old_vllm' of fault-needs-old-vllm 1.0",
    "'name with spaces'",
)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``vllm-ext`` in a process with the whole corpus on its path; a module that runs leaves a file in ``folder``."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, all_folders())),
        "FAULTS_CANARY": str(folder),
    }
    command = [sys.executable, "-m", "vllm_ext.cli.main", *arguments]
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=400)


def listed(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows by distribution, name and status."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout):
        rows.setdefault((row["distribution"], row["name"], row["status"]), []).append(row)
    return rows


def find(rows: dict[tuple[str, str, str], list[dict[str, Any]]], fault: Fault) -> list[dict[str, Any]]:
    distribution = f"fault-{fault.folder.replace('_', '-')}"
    wanted = fault.name or fault.folder
    return [
        row
        for (owner, name, status), found in rows.items()
        if owner == distribution and status == fault.status and (name.startswith(wanted) or wanted == "-")
        for row in found
    ]


def test_the_table_has_the_whole_corpus():
    assert {fault.folder for fault in EVERY} == {path.name for path in FAULTS.iterdir() if path.is_dir()} - {
        "__pycache__"
    }


def test_list_plan_and_doctor_are_right_and_run_no_plugin_code(tmp_path):
    shown, plan, doctor = (run(tmp_path, command, "-f", "json", *ASKED) for command in ("list", "plan", "doctor"))

    assert (shown.returncode, plan.returncode, doctor.returncode) == (0, 0, 1)
    assert "Traceback" not in shown.stderr + plan.stderr + doctor.stderr
    rows = listed(shown)
    assert {
        fault: [row["reason"] for row in find(rows, fault) if fault.reason in row["reason"]] for fault in EVERY
    } == {fault: [row["reason"] for row in find(rows, fault)] or "not listed" for fault in EVERY}
    decisions = json.loads(plan.stdout)["decisions"]
    assert {(d["record"]["distribution"], d["name"], d["status"]) for d in decisions} == set(rows)
    findings = " ".join(f"{row['subject']}: {row['finding']}" for row in json.loads(doctor.stdout))
    assert [text for text in FINDINGS if text not in findings] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_loading_names_every_fault_and_ends_within_the_limits(tmp_path):
    """That it ends at all shows the limits: two of the plugins would take an hour."""
    done = run(tmp_path, "list", "--load", "-f", "json", "--set", f"probe.timeout_s={TIMEOUT_S}", *ASKED)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = listed(done)
    for fault in (*SELECTED, *PLATFORMS):
        (row,) = find(rows, fault)
        assert (row["outcome"], fault.detail in row["detail"]) == (fault.outcome, True), row
    assert {row["outcome"] for fault in NOT_LOADED for row in find(rows, fault)} == {""}


CHECK_EACH = """
import contextlib, io, json, sys
from vllm_ext.cli.main import main
for reference in sys.argv[2:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["check", reference, "-f", "json", "--set", "probe.timeout_s=" + sys.argv[1]])
    print(json.dumps([code, json.loads(out.getvalue())]))
"""


@pytest.mark.slow
def test_check_says_of_each_what_is_wrong_and_goes_on_where_it_loads(tmp_path):
    faults = [fault for fault in (*SELECTED, *PLATFORMS) if fault.folder != "io_processor_none"]
    references = [f"fault-{fault.folder.replace('_', '-')}:{fault.name or fault.folder}" for fault in faults]
    path = [*map(str, all_folders()), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    done = subprocess.run(
        [sys.executable, "-c", CHECK_EACH, str(TIMEOUT_S), *references],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )

    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    for fault, line in zip(faults, done.stdout.splitlines(), strict=True):
        code, rows = json.loads(line)
        found = {row["check"]: row["result"] for row in rows}
        (load,) = [row for row in rows if row["check"] == "load"]
        expected = {"failed": "fail", "unavailable": "warning", "active": "pass"}[fault.outcome]
        assert (load["result"], fault.detail in load["detail"]) == (expected, True), rows
        assert (code, found["metadata"] == "fail") == (int(expected == "fail"), False), rows
        after = {found[check] for check in ("twice", "registered", "conformance")}
        assert ("pass" in after, "fail" in after) == (expected == "pass", False), rows


HARMLESS = """
import sys
from vllm_ext import LLM, ModelRegistry, SamplingParams
with LLM(overrides={"plugins.general.disabled": sys.argv[1].split(",")}, max_model_len=64) as llm:
    (output,) = llm.generate(["It was"], SamplingParams(temperature=0, max_tokens=4))
    print(len(output.outputs[0].token_ids), "GoodForCausalLM" in ModelRegistry.get_supported_archs())
"""


def test_a_good_plugin_beside_them_works_in_the_engine(tmp_path):
    """Those that end or hold up their process have to be turned off; all others are left in."""
    deadly = ["os_exit", "segfaults", "hangs", "hangs_ignoring_sigterm", "replaces_signal_handler", "spawns_child"]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, all_folders())),
        # torch looks for entry points of its own, with importlib.metadata, which files that are not UTF-8 break.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }

    done = subprocess.run(
        [sys.executable, "-c", HARMLESS, ",".join(deadly)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("4 True\n")
