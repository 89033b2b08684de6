from setuptools import setup

setup(
    name="vllm_ext_dummy_stats",
    version="0.1",
    description="Example stat loggers: one that keeps totals, one for all engines that writes them to a file",
    packages=["vllm_ext_dummy_stats"],
    entry_points={
        "vllm.stat_logger_plugins": [
            "totals = vllm_ext_dummy_stats.loggers:Totals",
            "report = vllm_ext_dummy_stats.loggers:Report",
        ]
    },
)
