from setuptools import setup

setup(
    name="vllm_ext_dummy_logits",
    version="0.1",
    description="Example logits processors: one for a whole batch, one per request, one for random draws only",
    packages=["vllm_ext_dummy_logits"],
    entry_points={
        "vllm.logits_processors": [
            "forbid = vllm_ext_dummy_logits.processors:ForbidToken",
            "repeat_limit = vllm_ext_dummy_logits.processors:RepeatLimit",
            "keep = vllm_ext_dummy_logits.processors:KeepLikeliest",
        ]
    },
)
