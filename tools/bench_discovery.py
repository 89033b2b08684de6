#!/usr/bin/env python3
"""Time discovery among many installed distributions: ``vllm-ext list``, and loading the documented groups.

    python tools/bench_discovery.py
    python tools/bench_discovery.py --sizes 1000 --runs 15

For each size it makes a folder with that many unrelated distributions and, always, the same few with plugins. Every
measured process has that folder on its path, and no settings; the interpreter's own site-packages is on the path as
well and counts in both ways of loading. Sizes and ways take turns, and medians over the runs, after one warm-up, are
compared.

List: whole processes of ``vllm-ext list -f json``. Loading: seconds inside a new process, without its imports of
vllm_ext or importlib.metadata, of one scan and plan and the plugins of the four documented groups (``ours``), of one
``entry_points(group=…)`` call per group and the loading of what it gives, as vLLM does it (``entry_points``), and of
``scan()`` alone. A run in which a way does not load exactly the plugins that are there is an error, exit code 1.
Progress goes to stderr, the results with the budgets of the design to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

LIST_BUDGET_S = 0.25
"""Whole process of ``list``."""
LIST_BUDGET_MORE_S = 0.1
"""What up to ``BUDGET_SIZE`` further distributions may add to it."""
LOADING_BUDGET_RATIO = 5
"""How many times as fast as ``entry_points`` loading has to be at ``BUDGET_SIZE`` distributions."""
BUDGET_SIZE = 1000


_HOOK = "def register():\n    pass\n"
_CLASS_PATH = "def register():\n    return 'bench_implementation.Implementation'\n"
_STAT_LOGGER = """
from vllm_ext.contracts.stat_logger import StatLoggerBase
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0):
        self.engine_index = engine_index
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0):
        pass
    def log_engine_initialized(self):
        pass
"""

IO_PROCESSOR = "bench_io"
"""The one IO processor: it is loaded because a setting names it, as in an engine that uses it."""


class Plugin(NamedTuple):
    """A plugin of the benchmark, in a module of its name in its distribution's package."""

    distribution: str
    group: str
    name: str
    source: str
    value: str = "register"


PLUGINS = (
    Plugin("bench-models", "vllm.general_plugins", "bench_llava", _HOOK),
    Plugin("bench-models", "vllm.general_plugins", "bench_mixture", _HOOK),
    Plugin("bench-device", "vllm.general_plugins", "bench_device_ops", _HOOK),
    Plugin("bench-device", "vllm.platform_plugins", "bench_device", _CLASS_PATH),
    Plugin("bench-other-device", "vllm.platform_plugins", "bench_other_device", _CLASS_PATH),
    Plugin("bench-io", "vllm.io_processor_plugins", IO_PROCESSOR, _CLASS_PATH),
    Plugin("bench-device", "vllm.stat_logger_plugins", "bench_device_log", _STAT_LOGGER, "Logger"),
    Plugin("bench-statsd", "vllm.stat_logger_plugins", "bench_statsd", _STAT_LOGGER, "Logger"),
)
GROUPS = tuple(dict.fromkeys(plugin.group for plugin in PLUGINS))

# Ahead of the clock, either way imports the contract that stat loggers derive from: an engine has it already.
_FRAME = """
import json, logging, os, sys, time
import vllm_ext.contracts.stat_logger
groups, io_processor = json.loads(sys.argv[1]), sys.argv[2]
WORK
started = time.perf_counter()
plugins = work()
seconds = time.perf_counter() - started
print(json.dumps([seconds, {group: sorted(plugins[group]) for group in groups}]))
"""

_OURS = """
from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.managers import load_group
def work():
    plan = make_plan(load_config(overrides=[Override("plugins.io_processor.use", io_processor, "benchmark")]))
    return {group: load_group(plan, group) for group in groups}
"""

_ENTRY_POINTS = """
from importlib.metadata import entry_points
def load(group):
    allowed = os.environ["VLLM_PLUGINS"].split(",") if "VLLM_PLUGINS" in os.environ else None
    loaded = {}
    for entry_point in entry_points(group=group):
        if allowed is None or entry_point.name in allowed:
            try:
                loaded[entry_point.name] = entry_point.load()
            except Exception:
                logging.exception("plugin %s cannot be loaded", entry_point.name)
    return loaded
def work():
    return {group: load(group) for group in groups}
"""

_SCAN = """
from vllm_ext.discovery import scan
def work():
    records = scan()
    return {group: [record.name for record in records if record.group == group] for group in groups}
"""

WAYS = {"ours": _OURS, "entry_points": _ENTRY_POINTS, "scan": _SCAN}

_WORDS = ["azure", "cloud", "data", "django", "flask", "google", "jupyter", "open", "py", "rich", "sphinx", "test"]
_TAILS = ["auth", "cache", "client", "config", "core", "db", "fixtures", "json", "schema", "storage", "types", "utils"]
_OTHER_GROUPS = ["babel.extractors", "distutils.commands", "fsspec.specs", "pygments.lexers", "sqlalchemy.dialects"]
_UNRELATED_GROUPS = ["console_scripts"] * 5 + ["pytest11"] * 2 + _OTHER_GROUPS


def make_folder(site: Path, size: int) -> None:
    """A folder with ``size`` unrelated distributions and those of the plugins; the same every time."""
    draw = random.Random(size)
    site.mkdir()
    for index in range(size):
        name = f"{draw.choice(_WORDS)}-{draw.choice(_TAILS)}-{index}"
        _write_distribution(site, name, _unrelated_entry_points(name, draw), draw)
    for name in dict.fromkeys(plugin.distribution for plugin in PLUGINS):
        plugins = [plugin for plugin in PLUGINS if plugin.distribution == name]
        package = name.replace("-", "_")
        declared = (f"[{p.group}]\n{p.name} = {package}.{p.name}:{p.value}\n\n" for p in plugins)
        # As many plugins do, they require a version of vLLM, which has to be looked for.
        _write_distribution(site, name, "".join(declared), draw, requires="vllm>=0.9")
        for plugin in plugins:
            (site / package / f"{plugin.name}.py").write_text(plugin.source)


def _unrelated_entry_points(name: str, draw: random.Random) -> str:
    """For four of five distributions one or more groups, without any that is ours; else nothing."""
    groups = draw.choices(_UNRELATED_GROUPS, k=draw.choice([0, 1, 1, 1, 3]))
    module = name.replace("-", "_")
    lines = [f"{name}-{i} = {module}.cli:main_{i}\n" for i in range(draw.randint(1, 4))]
    return "\n".join(f"[{group}]\n{''.join(lines)}" for group in dict.fromkeys(groups))


def _write_distribution(
    site: Path, name: str, entry_points: str, draw: random.Random, requires: str = "packaging"
) -> None:
    """An empty package and its metadata, of the sizes that one meets."""
    module = name.replace("-", "_")
    version = f"{draw.randint(0, 9)}.{draw.randint(0, 30)}.{draw.randint(0, 9)}"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n\n"
    sentence = f"The package {name} helps where other packages do not, and is described here at length.\n"
    line = module + "/part_{}.py,sha256=" + "x" * 43 + ",{}\n"
    files = {
        "METADATA": metadata + sentence * (draw.randint(2_000, 20_000) // len(sentence)),
        "RECORD": "".join(line.format(i, draw.randint(0, 50_000)) for i in range(draw.randint(20, 200))),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "INSTALLER": "pip\n",
        "top_level.txt": f"{module}\n",
    } | ({"entry_points.txt": entry_points} if entry_points else {})
    dist_info = site / f"{module}-{version}.dist-info"
    for folder, texts in ((dist_info, files), (site / module, {"__init__.py": ""})):
        folder.mkdir()
        for filename, text in texts.items():
            (folder / filename).write_text(text)


def run_python(site: Path, *arguments: str) -> tuple[float, str]:
    """Wall seconds and output of a process with ``site`` on its path. RuntimeError where it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "PYTHON"))}
    # Beside the site folder lies an empty one, where no settings are found.
    environment |= {"PYTHONPATH": str(site), "XDG_CONFIG_HOME": str(site.parent / "no-settings")}
    command = [sys.executable, "-P", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with code {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout


def time_list(site: Path) -> float:
    """Wall seconds of one listing."""
    seconds, output = run_python(site, "-m", "vllm_ext.cli.main", "list", "-f", "json")
    rows = json.loads(output)
    check_plugins("list", {group: [row["name"] for row in rows if row["group"] == group] for group in GROUPS})
    return seconds


def time_loading(site: Path, way: str) -> float:
    """Seconds that one way takes inside a process of its own."""
    _, output = run_python(site, "-c", _FRAME.replace("WORK", WAYS[way]), json.dumps(GROUPS), IO_PROCESSOR)
    seconds, names = json.loads(output)
    check_plugins(way, names)
    return float(seconds)


def check_plugins(way: str, names: dict[str, list[str]]) -> None:
    """RuntimeError where a way gave other plugins than those that are there."""
    for group in GROUPS:
        expected = sorted(plugin.name for plugin in PLUGINS if plugin.group == group)
        if sorted(names.get(group, [])) != expected:
            raise RuntimeError(f"{way} gave {names.get(group, [])} of {group} instead of {expected}")


def measure(sites: dict[int, Path], runs: int) -> dict[str, dict[int, float]]:
    """Median seconds, by what was timed and size."""
    seconds: dict[str, dict[int, list[float]]] = {what: {size: [] for size in sites} for what in ("list", *WAYS)}
    for run in range(runs + 1):
        for size, site in sites.items():
            timed = {"list": time_list(site)} | {way: time_loading(site, way) for way in WAYS}
            label = f"run {run}/{runs}" if run else "warm-up"
            report(f"{label}, {size} distributions: {', '.join(f'{w} {s * 1000:.1f} ms' for w, s in timed.items())}")
            for what, value in timed.items() if run else ():
                seconds[what][size].append(value)
    return {what: {size: statistics.median(of_size[size]) for size in sites} for what, of_size in seconds.items()}


def list_result(medians: dict[int, float], size: int) -> dict[str, Any]:
    """One size of ``list``; beyond ``BUDGET_SIZE`` there is no budget."""
    more = medians[size] - medians[0]
    result = {"distributions": size, "median_s": round(medians[size], 4), "more_s": round(more, 4)}
    if size == 0:
        return result | {"budget_s": LIST_BUDGET_S, "within": medians[0] < LIST_BUDGET_S}
    if size <= BUDGET_SIZE:
        return result | {"budget_more_s": LIST_BUDGET_MORE_S, "within": more <= LIST_BUDGET_MORE_S}
    return result


def loading_result(medians: dict[str, dict[int, float]], size: int) -> dict[str, Any]:
    """One size of loading; only ``BUDGET_SIZE`` has a budget."""
    ratio = medians["entry_points"][size] / medians["ours"][size]
    times = {f"{way}_ms": round(medians[way][size] * 1000, 3) for way in WAYS}
    result = {"distributions": size, **times, "ratio": round(ratio, 2)}
    if size == BUDGET_SIZE:
        return result | {"budget_ratio": LOADING_BUDGET_RATIO, "within": ratio >= LOADING_BUDGET_RATIO}
    return result


def describe_machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"python": platform.python_version(), "cores": cores, "platform": platform.platform()}


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(sizes: list[int], runs: int) -> dict[str, Any]:
    """All measurements, as what is printed."""
    sizes = sorted({0, *sizes})
    with tempfile.TemporaryDirectory(prefix="bench_discovery_") as folder:
        (Path(folder) / "no-settings").mkdir()
        sites = {size: Path(folder) / f"site-{size}" for size in sizes}
        for size, site in sites.items():
            make_folder(site, size)
            report(f"{site}: made")
        medians = measure(sites, runs)
    return {
        "machine": describe_machine(),
        "parameters": {"sizes": sizes, "runs": runs, "plugins": len(PLUGINS), "groups": list(GROUPS)},
        "list": [list_result(medians["list"], size) for size in sizes],
        "loading": [loading_result(medians, size) for size in sizes],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time discovery among many installed distributions.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[0, 100, 1000], help="unrelated distributions (0 100 1000); 0 is added"
    )
    parser.add_argument("--runs", type=int, default=7, help="runs of each process, after a warm-up (7)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1 or min(arguments.sizes) < 0:
        parser.error("--runs has to be at least 1, and each of --sizes at least 0")
    try:
        results = run(arguments.sizes, arguments.runs)
    except RuntimeError as error:
        report(f"error: {error}")
        return 1
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
