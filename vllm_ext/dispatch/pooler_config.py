"""How a model directory wants its tokens' states pooled: the files that sentence-transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

from vllm_ext.config.schema import EngineSettings
from vllm_ext.contracts.pooling_params import ConvertType
from vllm_ext.contracts.vllm_config import HFConfig, PoolerConfig, PoolingType
from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.errors import CheckpointError, UnsupportedModel, listing

MODULES_FILE = "modules.json"
_TRANSFORMER_CONFIG = "sentence_bert_config.json"
_LIBRARY_CONFIG = "config_sentence_transformers.json"
_NO_LIMIT = 10**9
_TYPES: dict[str, PoolingType] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ENCODERS = ("bert", "roberta", "xlm-roberta")
"""``model_type`` of models whose first token stands for the text."""


class _Module(NamedTuple):
    kind: str
    folder: Path


def has_modules(model: Path) -> bool:
    """Whether the directory is one of sentence-transformers, of a model for embeddings."""
    return (model / MODULES_FILE).is_file() and not _is_cross_encoder(model)


def make_pooler_config(
    engine: EngineSettings, model: Path, hf_config: HFConfig, convert_type: ConvertType
) -> PoolerConfig:
    """What the settings say, else the model's files, else what models of its kind do.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModel: the files ask for something that is not supported.
    """
    wanted = None if engine.pooling_type == "auto" else engine.pooling_type
    if convert_type == "embed" and has_modules(model):
        return _from_modules(model, hf_config, _read_modules(model), wanted)
    if convert_type == "classify":
        _check_cross_encoder(model)
    usual: PoolingType = "CLS" if is_encoder(hf_config) else "LAST"
    return PoolerConfig(
        wanted or usual, embedding_size=hf_config.get("hidden_size"), activation_fn=_activation_fn(model, hf_config)
    )


def is_encoder(hf_config: HFConfig) -> bool:
    """Whether it describes an encoder that there is a model class of ours for."""
    return hf_config.get("model_type") in _ENCODERS


def max_seq_length(model: Path) -> int | None:
    """Tokens that the files of sentence-transformers cut a text to; ``None`` where they do not say."""
    if not (model / MODULES_FILE).is_file():
        return None
    value = _transformer_config(model).get("max_seq_length")
    if value is None:
        return _length_of_tokenizer(model)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{model / _TRANSFORMER_CONFIG}: max_seq_length is {value!r}; it takes a number from 1 on"
        )
    return value


def _from_modules(model: Path, hf_config: HFConfig, modules: list[_Module], wanted: PoolingType | None) -> PoolerConfig:
    """The config for ``Transformer``, ``Pooling``, any number of ``Dense``, and maybe ``Normalize``, in this order."""
    kinds = [module.kind for module in modules]
    middle = kinds[2:-1] if kinds[-1] == "Normalize" else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind != "Dense" for kind in middle):
        raise UnsupportedModel(
            f"{model / MODULES_FILE} has the modules {listing(kinds)}; supported are, in this order: Transformer, "
            "Pooling, any number of Dense, and Normalize"
        )
    dense = [module.folder for module in modules if module.kind == "Dense"]
    last = _out_features(dense[-1]) if dense else None
    return PoolerConfig(
        wanted or _pooling_type(modules[1].folder / "config.json"),
        use_activation=kinds[-1] == "Normalize",
        dense=tuple(map(str, dense)),
        embedding_size=last or hf_config.get("hidden_size"),
        do_lower_case=bool(_transformer_config(model).get("do_lower_case", False)),
        prompt=_default_prompt(model, modules[1].folder / "config.json"),
    )


def _default_prompt(model: Path, pooling: Path) -> str:
    """What the library puts before texts for which the caller names no prompt."""
    path = model / _LIBRARY_CONFIG
    config = _optional_json(path)
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    known = prompts if isinstance(prompts, dict) else {}
    prompt = known.get(name) if isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise CheckpointError(f"{path}: default_prompt_name is {name!r}; it takes one of: {listing(sorted(known))}")
    if prompt and read_json_object(pooling).get("include_prompt") is False:
        raise UnsupportedModel(
            f"{pooling} leaves the prompt out, which is not supported where default_prompt_name of {path} is set"
        )
    return prompt


def _out_features(folder: Path) -> int:
    path = folder / "config.json"
    return HFConfig(read_json_object(path), path).positive_int("out_features")


def _read_modules(model: Path) -> list[_Module]:
    path = model / MODULES_FILE
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
        modules = [_Module(str(entry["type"]).rpartition(".")[2], model / str(entry["path"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a list of modules of sentence-transformers: {error!r}") from error
    if outside := [module.folder for module in modules if not module.folder.resolve().is_relative_to(model.resolve())]:
        raise CheckpointError(f"{path} names {str(outside[0])!r}, which is not in the model directory")
    if not modules:
        raise CheckpointError(f"{path} is an empty list; it takes the modules of the model")
    return modules


def _pooling_type(path: Path) -> PoolingType:
    values = read_json_object(path)
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if values.get(key)]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in _TYPES:
        raise UnsupportedModel(
            f"{path} asks for the pooling {modes!r}; supported is one of: {listing(_TYPES)}. Another one may be tried "
            f"with engine.pooling_type: {', '.join(get_args(PoolingType))}"
        )
    return _TYPES[modes[0]]


def _is_cross_encoder(model: Path) -> bool:
    """Whether the directory is one of sentence-transformers, of a model that reads two texts at once."""
    return _optional_json(model / _LIBRARY_CONFIG).get("model_type") == "CrossEncoder"


def _check_cross_encoder(model: Path) -> None:
    """UnsupportedModel where sentence-transformers does more than what transformers' model does."""
    if not (model / MODULES_FILE).is_file() or not _is_cross_encoder(model):
        return
    kinds = [module.kind for module in _read_modules(model)]
    if kinds != ["Transformer"]:
        raise UnsupportedModel(
            f"{model / MODULES_FILE} has the modules {listing(kinds)}; of a cross-encoder, Transformer alone is "
            "supported"
        )


def _activation_fn(model: Path, hf_config: HFConfig) -> str | None:
    """What makes results of scores: as sentence-transformers writes it down, or did in one of two older forms."""
    own = _optional_json(model / _LIBRARY_CONFIG).get("activation_fn") if _is_cross_encoder(model) else None
    older = hf_config.get("sentence_transformers", {})
    if not isinstance(older, dict):
        raise CheckpointError(f"{hf_config.source}: sentence_transformers is {older!r}; it takes an object")
    written = own or older.get("activation_fn") or hf_config.get("sbert_ce_default_activation_function")
    return None if written is None else str(written)


def _length_of_tokenizer(model: Path) -> int | None:
    """Where newer versions write it down; a huge number stands for no limit."""
    value = _optional_json(model / "tokenizer_config.json").get("model_max_length")
    return value if isinstance(value, int) and 0 < value < _NO_LIMIT else None


def _transformer_config(model: Path) -> dict[str, Any]:
    return _optional_json(model / _TRANSFORMER_CONFIG)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
