"""The table of environment variables is complete."""

from __future__ import annotations

import re
from pathlib import Path

import vllm_ext
from vllm_ext import envs

READS = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\()\s*(["']?)([\w.]+)""")
ASKS = re.compile(r"""(["'])(\w+)\1\s+(?:not\s+)?in\s+os\.environ""")


def test_every_variable_that_the_package_reads_is_in_the_table():
    sources = [path.read_text() for path in Path(vllm_ext.__file__).parent.rglob("*.py")]
    read = {(quote, name) for source in sources for reads in (READS, ASKS) for quote, name in reads.findall(source)}
    names = {name for quote, name in read if quote}
    constants = {getattr(envs, name.removeprefix("envs.")) for quote, name in read if name.startswith("envs.")}

    assert names | constants >= {
        "XDG_CONFIG_HOME",
        "GLOO_SOCKET_IFNAME",
        "VLLM_PLUGINS",
        "VLLM_EXT_CONFIG",
        "VLLM_EXT_SAFE_MODE",
    }
    assert names | constants <= set(envs.VARIABLES)
    assert all(envs.VARIABLES.values())
