"""Memory and processors, as machine and control groups grant them; read from a made-up /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_ext.platforms.host_memory import HostMemory, num_usable_cpus, read_host_memory

GB = 2**30
MEMINFO = f"MemTotal: {16 * GB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {10 * GB // 1024} kB\n"


def make_machine(root: Path, files: dict[str, object], groups: str = "0::/\n") -> Path:
    for path, content in {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{content}".rstrip("\n") + "\n")
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        pytest.param({}, "0::/\n", HostMemory(16 * GB, 6 * GB), id="no limit"),
        pytest.param(
            {f"{V2}/memory.max": "max", f"{V2}/memory.current": 5 * GB}, "0::/\n", HostMemory(16 * GB, 6 * GB), id="max"
        ),
        pytest.param(
            # A third of what is in use is page cache that can be given back.
            {
                f"{V2}/memory.max": 4 * GB,
                f"{V2}/memory.current": 3 * GB,
                f"{V2}/memory.stat": f"anon 1\ninactive_file {GB}",
            },
            "0::/\n",
            HostMemory(4 * GB, 2 * GB),
            id="container of version 2",
        ),
        pytest.param(
            # The group itself is free to grow, the one around it is not.
            {
                f"{V2}/pod/job/memory.max": "max",
                f"{V2}/pod/memory.max": 8 * GB,
                f"{V2}/pod/memory.current": 7 * GB,
            },
            "0::/pod/job\n",
            HostMemory(8 * GB, 7 * GB),
            id="limit of an outer group",
        ),
        pytest.param(
            # The machine itself has less to give than the limit would allow.
            {f"{V2}/memory.max": 14 * GB, f"{V2}/memory.current": GB},
            "0::/\n",
            HostMemory(14 * GB, 4 * GB),
            id="busy machine",
        ),
        pytest.param(
            {
                f"{V1}/memory.limit_in_bytes": 2 * GB,
                f"{V1}/memory.usage_in_bytes": GB,
                f"{V1}/memory.stat": f"total_inactive_file {GB // 2}",
            },
            # The path is that of the host: in the container it is the mounted root.
            "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
            HostMemory(2 * GB, GB // 2),
            id="container of version 1",
        ),
        pytest.param(
            {f"{V1}/memory.limit_in_bytes": 2**63 - 4096, f"{V1}/memory.usage_in_bytes": GB},
            "9:memory:/\n",
            HostMemory(16 * GB, 6 * GB),
            id="version 1 without limit",
        ),
    ],
)
def test_memory_is_that_of_the_tightest_limit(tmp_path, files, groups, expected):
    assert read_host_memory(make_machine(tmp_path, files, groups)) == expected


def test_without_proc_the_system_is_asked(tmp_path):
    memory = read_host_memory(tmp_path)

    assert memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.used < memory.total


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        pytest.param({}, "0::/\n", 8, id="no quota"),
        pytest.param({f"{V2}/cpu.max": "max 100000"}, "0::/\n", 8, id="max"),
        pytest.param({f"{V2}/cpu.max": "350000 100000"}, "0::/\n", 3, id="three and a half processors"),
        pytest.param({f"{V2}/cpu.max": "50000 100000"}, "0::/\n", 1, id="half a processor"),
        pytest.param({f"{V2}/pod/cpu.max": "200000 100000"}, "0::/pod/job\n", 2, id="outer group"),
        pytest.param(
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 400000, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
            "4:cpu,cpuacct:/x\n",
            4,
            id="version 1",
        ),
        pytest.param(
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
            "4:cpu,cpuacct:/\n",
            8,
            id="version 1 without quota",
        ),
    ],
)
def test_processors_are_those_of_affinity_and_quota(tmp_path, monkeypatch, files, groups, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    assert num_usable_cpus(make_machine(tmp_path, files, groups)) == expected
