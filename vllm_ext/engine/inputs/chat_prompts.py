"""From the messages of a conversation to the prompt of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ext.engine.inputs.conversations import parse_conversation
from vllm_ext.engine.inputs.prompts import TokensPrompt
from vllm_ext.engine.inputs.tokenizer import tokenizing
from vllm_ext.errors import InvalidRequest

if TYPE_CHECKING:
    from vllm_ext.contracts.tokenizer import TokenizerLike
    from vllm_ext.engine.inputs.chat_template import ChatTemplates


class ChatPrompts:
    """Writes prompts by the chat template of a model directory; its methods may be called from any thread."""

    def __init__(self, directory: Path, tokenizer: TokenizerLike) -> None:
        self._directory = directory
        self._tokenizer = tokenizer

    def make(
        self,
        messages: Any,
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> TokensPrompt:
        """The prompt of one conversation; arguments as of :meth:`ChatTemplates.render`.

        Args:
            add_special_tokens: let the tokenizer add those that it begins texts with; the template has written those
                that the model wants.

        Raises:
            InvalidRequest: a message has another form, the template refuses them, or arguments do not go together.
            TokenizerError, CheckpointError: the directory has no template, and none is given; or it cannot be read.
        """
        if add_generation_prompt and continue_final_message:
            raise InvalidRequest(
                "add_generation_prompt and continue_final_message are both true, and a message is either begun or gone "
                "on with; set one of them to False"
            )
        text = self._templates.render(
            parse_conversation(messages),
            template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=variables,
        )
        with tokenizing():
            token_ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return TokensPrompt(prompt=text, prompt_token_ids=token_ids)

    @cached_property
    def _templates(self) -> ChatTemplates:
        # Who has no conversations does without jinja2.
        from vllm_ext.engine.inputs.chat_template import ChatTemplates

        return ChatTemplates(self._directory)
