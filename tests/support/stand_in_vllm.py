"""A distribution in vLLM's place: its platform classes and detectors, and the groups that it reads."""

from __future__ import annotations

from support.plugins import PluginInstaller

FILES = {
    "vllm/__init__.py": "",
    "vllm/platforms/__init__.py": (
        "def cpu_platform_plugin(): return 'vllm.platforms.interface.CpuPlatform'\n"
        "def cuda_platform_plugin(): return None\n"
        "def rocm_platform_plugin(): return None\n"
        "def tpu_platform_plugin(): return None\n"
        "def xpu_platform_plugin(): return None\n"
    ),
    "vllm/platforms/interface.py": "class Platform: ...\nclass CpuPlatform(Platform): ...\n",
}


def install_vllm(plugins: PluginInstaller, **changed: str) -> None:
    """Install it; ``changed`` replaces detectors of its own platforms by name, as expressions."""
    detectors = "".join(f"def {name}_platform_plugin(): return {value}\n" for name, value in changed.items())
    path = "vllm/platforms/__init__.py"
    plugins.distribution("vllm", {}, FILES | {path: FILES[path] + detectors})
