"""An endpoint: ``POST /ask/{prompt}`` completes a prompt, and ``GET /version`` says how often it was asked."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from vllm_ext import SamplingParams, __version__

if TYPE_CHECKING:
    from vllm_ext import AsyncLLM


class Question(BaseModel):
    max_tokens: int = 8


class Asked:
    """What the routes share; the application's state holds it."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.count = 0


router = APIRouter()


@router.post("/ask/{prompt}")
async def ask(prompt: str, question: Question, request: Request) -> dict[str, Any]:
    """The likeliest text after ``prompt``."""
    state = request.app.state
    state.asked.count += 1
    params = SamplingParams(temperature=0, max_tokens=question.max_tokens)
    text = ""
    async for output in state.engine_client.generate(prompt, params):
        text = output.outputs[0].text
    return {"model": state.asked.model, "text": text}


@router.get("/version")
async def version(request: Request) -> dict[str, Any]:
    """In place of the server's own."""
    return {"version": __version__, "asked": request.app.state.asked.count}


class Ask:
    """What the entry point names: called without arguments, it makes the plugin."""

    name = "ask"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: AsyncLLM | None, state: Any, args: Namespace) -> None:
        state.asked = Asked(args.served_model_name[0])
