"""Tokenizers by mode."""

from __future__ import annotations

from vllm_ext.registry.classes import ClassRegistry


class _TokenizerRegistry:
    """``register`` for plugins, ``load_tokenizer_cls`` for the engine. vLLM: ``TokenizerRegistry``."""

    def __init__(self) -> None:
        fast = "vllm_ext.engine.inputs.tokenizer:FastTokenizer"
        self._registry = ClassRegistry("tokenizer mode", {"auto": fast, "hf": fast})
        self.snapshot = self._registry.snapshot
        self.restore = self._registry.restore

    def register(self, tokenizer_mode: str, module: str, class_name: str) -> None:
        """Let ``class_name`` of ``module`` make the tokenizers of engines with ``engine.tokenizer_mode`` so named.

        Args:
            module, class_name: imported when an engine with that mode is built; what the class has to offer is
                :class:`vllm_ext.contracts.tokenizer.TokenizerLike`.

        Raises:
            RegistrationError: the mode is no name, or module and class are none.
        """
        self._registry.register(tokenizer_mode, f"{module}:{class_name}")

    def get_supported_modes(self) -> list[str]:
        """All modes, sorted. An extension of vLLM's contract."""
        return self._registry.names()

    def load_tokenizer_cls(self, tokenizer_mode: str, *, named_by: str = "") -> type:
        """The class for a mode.

        Args:
            named_by: the setting that names the mode, for messages.

        Raises:
            PluginNotFound: nobody registered the mode.
            PluginLoadError, ContractError: its class cannot be imported, or is none.
        """
        return self._registry.load(tokenizer_mode, named_by=named_by)


TokenizerRegistry = _TokenizerRegistry()
