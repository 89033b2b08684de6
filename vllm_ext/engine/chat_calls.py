"""What ``LLM`` offers of a model that was trained for conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.arguments import refuse_adapter
from vllm_ext.engine.inputs.chat_prompts import ChatPrompts
from vllm_ext.engine.inputs.conversations import Message, split_conversations
from vllm_ext.engine.inputs.prompts import shown
from vllm_ext.errors import InvalidRequest

if TYPE_CHECKING:
    from vllm_ext.engine.llm_engine import LLMEngine


class ChatCalls:
    """The method of :class:`LLM` for conversations."""

    llm_engine: LLMEngine

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """The model's next message in one conversation or many.

        Args:
            messages: dictionaries with ``role`` and ``content``, a text or a list of ``{"type": "text", "text":
                text}``; or a list of such lists, which are several conversations.
            sampling_params, use_tqdm, lora_request, priority: as for :meth:`generate`.
            chat_template: a template of jinja2, in place of the one in the model directory.
            add_generation_prompt: end the prompt with what comes before a message of the model; else it may write
                whose turn it is itself.
            continue_final_message: let the model go on within the last message. Then ``add_generation_prompt`` has to
                be False.
            tools: descriptions of functions for the template, in OpenAI's form. What the model says of them is in the
                text.
            chat_template_kwargs: further variables of the template.

        Returns: one output for each conversation, in their order; ``prompt`` is the text that the template made.

        Raises:
            InvalidRequest: a message or an argument has another form, or the template refuses them; none is started.
            TokenizerError, CheckpointError: the model directory has no chat template, and none is given; or what it has
                cannot be read.
            EngineError: a step failed.
        """
        refuse_adapter(lora_request)
        _check_options(chat_template, tools, chat_template_kwargs)
        prompts = [
            self._chat_prompts.make(
                conversation,
                template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                variables=chat_template_kwargs,
            )
            for conversation in split_conversations(messages)
        ]
        return self._complete(prompts, sampling_params, priority, use_tqdm)

    @cached_property
    def _chat_prompts(self) -> ChatPrompts:
        directory = Path(self.llm_engine.vllm_config.model_config.tokenizer)
        return ChatPrompts(directory, self.llm_engine.tokenizer)

    def _complete(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        """The output of each prompt; what serves them belongs to :class:`LLM`."""
        raise NotImplementedError


def _check_options(template: object, tools: object, variables: object) -> None:
    """InvalidRequest where one of them is of a wrong kind, which a template would be blamed for."""
    for name, value, kind, expected in (
        ("chat_template", template, str, "a template of jinja2, as a text"),
        ("tools", tools, list | tuple, "a list of descriptions of functions"),
        ("chat_template_kwargs", variables, Mapping, "a dictionary of variables of the template"),
    ):
        if value is not None and not isinstance(value, kind):
            raise InvalidRequest(f"{name} is {shown(value)}; it takes {expected}")
