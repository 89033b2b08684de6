"""Programs that mypy checks strictly: what a user may write is what the annotations allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow]

PROGRAM = """
from vllm_ext import LLM, AsyncLLM, EmbeddingRequestOutput, PromptType, RequestOutput, SamplingParams, TokensPrompt

def complete(llm: LLM) -> list[RequestOutput]:
    llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=1))
    llm.generate([[5, 6], [7]], [SamplingParams(), SamplingParams()])
    llm.generate("She had")
    llm.generate([5, 6])
    llm.generate({"prompt": "She had"})
    one_or_many: str | list[str] = ["She had"]
    llm.generate(one_or_many)
    return llm.generate(["She had", {"prompt": "He was"}, [5, 6, 7]])

def embed(llm: LLM, ids: list[int]) -> list[EmbeddingRequestOutput]:
    prompts: list[PromptType] = ["She had", TokensPrompt(prompt_token_ids=ids)]
    return llm.embed(prompts)

async def stream(engine: AsyncLLM) -> str:
    async for state in engine.generate({"prompt_token_ids": [5, 6]}, SamplingParams(), priority=1):
        text = state.outputs[0].text
    return text
"""


def test_prompts_of_every_form_and_mixed_are_accepted(tmp_path):
    pytest.importorskip("mypy", reason="mypy comes with the extra lint")
    (tmp_path / "program.py").write_text(PROGRAM)
    # As of an installed package: what mypy finds in the package itself is not told.
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"MYPYPATH": str(Path(__file__).parent.parent)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
