"""One rule, per key: command line > environment > file (a later file wins) > default."""

from __future__ import annotations

import pytest

from vllm_ext.config import Override, Settings, load_config, parse_set
from vllm_ext.config.environment import variable_of
from vllm_ext.config.keys import all_keys
from vllm_ext.errors import ConfigError

# Per key: what a file, the environment and the command line give, as YAML text; the first differs from the default.
NAMES = ("[from_file]", "from_env", "[from_cli]")
VALUES = {
    "host": ("vllm", "embedded", "vllm"),
    **{
        f"plugins.{kind}.{name}": NAMES
        for kind in ("general", "io_processor", "stat_logger", "endpoint", "logits_processor")
        for name in ("enabled", "disabled")
    },
    "plugins.io_processor.use": ("from_file", "from_env", "from_cli"),
    "allow_distributions": NAMES,
    "options.npu.batch": ("11", "12", "13"),
    "probe.timeout_s": ("1.5", "2.5", "3.5"),
    "platform.driver": ("from_file", "from_env", "from_cli"),
    "platform.disabled": NAMES,
    "attention.backend": ("from_file", "from_env", "from_cli"),
    "worker.cls": ("from_file", "from_env", "from_cli"),
    "worker.extension_cls": ("from_file", "from_env", "from_cli"),
    "profiler.torch_profiler_dir": ("from_file", "from_env", "from_cli"),
    "communicator.cls": ("from_file", "from_env", "from_cli"),
    "custom_ops": NAMES,
    "server.host": ("from_file", "from_env", "from_cli"),
    "server.port": ("11", "12", "13"),
    "server.api_key": ("from_file", "from_env", "from_cli"),
    "server.served_model_name": ("from_file", "from_env", "from_cli"),
    "engine.model": ("from_file", "from_env", "from_cli"),
    "engine.dtype": ("float32", "bfloat16", "float16"),
    "engine.enable_prefix_caching": ("false", "true", "false"),
    "engine.runner": ("generate", "pooling", "generate"),
    "engine.convert": ("embed", "classify", "none"),
    "engine.pooling_type": ("LAST", "CLS", "MEAN"),
    "engine.scheduling_policy": ("priority", "fcfs", "priority"),
    "engine.logits_processors": NAMES,
    "engine.scheduler_cls": ("from.File", "from.Env", "from.Cli"),
    "engine.quantization": ("from_file", "from_env", "from_cli"),
    "engine.load_format": ("from_file", "from_env", "from_cli"),
    "engine.tokenizer_mode": ("from_file", "from_env", "from_cli"),
    "engine.executor": ("from_file", "from_env", "from_cli"),
    "engine.core_process": ("true", "false", "true"),
    "engine.enforce_eager": ("true", "false", "true"),
    "engine.enable_sleep_mode": ("true", "false", "true"),
    "engine.disable_log_stats": ("false", "true", "false"),
    "engine.log_stats_interval_s": ("1.5", "2.5", "3.5"),
    "engine.join_timeout_s": ("1.5", "2.5", "3.5"),
    "engine.execute_model_timeout_s": ("1.5", "2.5", "3.5"),
    **{
        f"engine.{name}": ("11", "12", "13")
        for name in (
            "max_model_len",
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "kv_cache_memory",
            "tensor_parallel_size",
            "master_port",
            "seed",
        )
    },
}


@pytest.fixture
def file_with(tmp_path):
    def file_with(key: str, value: str, name: str = "settings.yaml"):
        path = tmp_path / name
        lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(key.split("."))]
        path.write_text("\n".join(lines) + f" {value}\n")
        return path

    return file_with


def value_of(config, key: str) -> str:
    value = config.settings
    for part in key.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else getattr(value, part)
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def environment(key: str, value: str) -> dict[str, str]:
    if key == "options.npu.batch":
        return {"VLLM_EXT_OPTIONS": f'{{"npu": {{"batch": {value}}}}}'}
    return {variable_of(key): value}


def test_the_table_has_every_key():
    assert {key if key in all_keys() else key.split(".")[0] for key in VALUES} == set(all_keys())


@pytest.mark.parametrize("key", VALUES)
class TestEachKey:
    def test_a_file_wins_over_the_default(self, key, file_with):
        file, *_ = VALUES[key]
        config = load_config([file_with(key, file)], environ={})

        assert value_of(config, key) == file.strip("[]")
        assert config.origin(key).kind == "file"
        assert value_of(config, key) != value_of(load_config(environ={}), key)

    def test_the_environment_wins_over_the_default(self, key):
        _, env, _ = VALUES[key]
        config = load_config(environ=environment(key, env))

        assert value_of(config, key) == env
        assert config.origin(key).kind == "environment"

    def test_the_command_line_wins_over_the_default(self, key):
        *_, cli = VALUES[key]
        config = load_config(overrides=[parse_set(f"{key}={cli}")], environ={})

        assert value_of(config, key) == cli.strip("[]")
        assert config.origin(key).kind == "command line"

    def test_a_later_file_wins_over_an_earlier_one(self, key, file_with):
        earlier, _, later = VALUES[key]
        config = load_config([file_with(key, earlier, "1.yaml"), file_with(key, later, "2.yaml")], environ={})

        assert value_of(config, key) == later.strip("[]")
        assert config.origin(key).where.endswith("2.yaml")

    def test_the_environment_wins_over_a_file(self, key, file_with):
        file, env, _ = VALUES[key]
        config = load_config([file_with(key, file)], environ=environment(key, env))

        assert value_of(config, key) == env
        assert config.origin(key).kind == "environment"

    def test_the_command_line_wins_over_the_environment(self, key):
        _, env, cli = VALUES[key]
        config = load_config(overrides=[parse_set(f"{key}={cli}")], environ=environment(key, env))

        assert value_of(config, key) == cli.strip("[]")
        assert config.origin(key).kind == "command line"

    def test_the_command_line_wins_over_a_file(self, key, file_with):
        file, _, cli = VALUES[key]
        config = load_config([file_with(key, file)], [parse_set(f"{key}={cli}")], environ={})

        assert value_of(config, key) == cli.strip("[]")
        assert config.origin(key).kind == "command line"


class TestNullBesideAList:
    """``allow_distributions``: null allows all, an empty list nothing; each wins over what came before."""

    def test_a_later_file_can_set_null_again(self, file_with):
        key = "allow_distributions"

        files = [file_with(key, "[a]", "1.yaml"), file_with(key, "null", "2.yaml")]

        assert load_config(files, environ={}).settings.allow_distributions is None

    @pytest.mark.parametrize(("text", "names"), [("null", None), ("", [])])
    def test_the_environment_wins_with_null_and_with_nothing(self, file_with, text, names):
        files = [file_with("allow_distributions", "[a]")]

        config = load_config(files, environ={"VLLM_EXT_ALLOW_DISTRIBUTIONS": text})

        assert config.settings.allow_distributions == names

    @pytest.mark.parametrize(("text", "names"), [("null", None), ("[]", [])])
    def test_the_command_line_wins_with_null_and_with_nothing(self, text, names):
        overrides = [parse_set(f"allow_distributions={text}")]

        config = load_config(overrides=overrides, environ={"VLLM_EXT_ALLOW_DISTRIBUTIONS": "a"})

        assert config.settings.allow_distributions == names


def test_mappings_merge_key_by_key(file_with):
    files = [file_with("engine.seed", "1", "1.yaml"), file_with("engine.block_size", "8", "2.yaml")]

    engine = load_config(files, environ={"VLLM_EXT_ENGINE__MAX_NUM_SEQS": "2"}).settings.engine

    assert (engine.seed, engine.block_size, engine.max_num_seqs) == (1, 8, 2)


def test_lists_replace(file_with):
    files = [file_with("custom_ops", "[a, b]", "1.yaml"), file_with("custom_ops", "[c]", "2.yaml")]

    assert load_config(files, environ={}).settings.custom_ops == ["c"]


def test_the_command_line_replaces_what_a_minus_in_the_environment_disabled():
    environ = {"VLLM_EXT_PLUGINS__GENERAL__ENABLED": "-a"}

    config = load_config(overrides=[parse_set("plugins.general.disabled=[b]")], environ=environ)

    assert config.settings.plugins.general.disabled == ["b"]


def test_no_source_gives_the_defaults():
    config = load_config(environ={})

    assert (config.settings, dict(config.origins)) == (Settings(), {})


class TestOverrides:
    def test_the_option_is_the_origin(self):
        config = load_config(overrides=[Override("platform.driver", "cpu", "--platform")], environ={})

        assert str(config.origin("platform.driver")) == "command line (--platform)"

    def test_a_later_one_wins(self):
        overrides = [Override("engine.seed", 1, "--seed"), parse_set("engine.seed=2")]

        assert load_config(overrides=overrides, environ={}).settings.engine.seed == 2

    def test_values_may_be_typed_already(self):
        overrides = [Override("platform.driver", ("a", "b"), "driver"), Override("engine.model", None, "model")]

        assert load_config(overrides=overrides, environ={}).settings.platform.driver == ["a", "b"]

    def test_set_reads_yaml_with_mappings_key_by_key(self):
        overrides = [parse_set("engine={seed: 3, block_size: 4}"), parse_set("engine.seed=5")]

        engine = load_config(overrides=overrides, environ={}).settings.engine

        assert (engine.seed, engine.block_size) == (5, 4)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("engine.sed=1", "engine.sed: unknown key (did you mean 'seed'?); keys of 'engine': block_size,"),
            (
                "engine.kv_cache_memory_bytes=1",
                "engine.kv_cache_memory_bytes: unknown key (in place of vLLM's: 'engine.kv_cache_memory'); keys of "
                "'engine': block_size,",
            ),
            (
                "trust_remote_code=true",
                "trust_remote_code: unknown key (in place of vLLM's: nothing: code in a model directory is never run; "
                "a plugin registers what is not built in); keys: allow_distributions,",
            ),
            ("probe.revision=1", "probe.revision: unknown key; keys of 'probe': timeout_s"),
            ("seed=1", "seed: unknown key (did you mean 'engine.seed'?)"),
            ("engine.seed=x", "engine.seed: expected a whole number from 0 to 9223372036854775807, given 'x'"),
            (
                "platform.driver=off",
                "platform.driver: expected auto, or a name, or a list of names, given False, which YAML reads as a "
                "boolean; quote it",
            ),
            (
                "plugins.general.enabled=off",
                "plugins.general.enabled: expected all, or a list of names, given False, which YAML reads as a "
                "boolean; write [] for none, or a list of names in quotes",
            ),
            (
                "plugins.general.enabled=a,b",
                "plugins.general.enabled: expected all, or a list of names, given 'a,b'; write [a, b]",
            ),
            ("platform.disabled=npu", "platform.disabled: expected a list of names, given 'npu'; write [npu]"),
            (
                "platform.disabled=[a, no]",
                "platform.disabled: expected a list of names, given ['a', False], which YAML reads as a boolean; "
                "quote it",
            ),
            (
                "engine.dtype=flaot32",
                "engine.dtype: expected one of auto, float32, bfloat16, float16, given 'flaot32' (did",
            ),
            ("probe.timeout_s=0", "probe.timeout_s: expected a number above 0 and of at most 86400, given 0"),
            (
                "probe.timeout_s=1e3",
                "probe.timeout_s: expected a number above 0 and of at most 86400, given '1e3', which YAML reads as a "
                "string; write 1000.0",
            ),
            (
                "engine.seed=0777",
                "engine.seed: expected a number to the base of ten, given '0777', which YAML reads as 511; write 511 "
                "for that, or quote it: '0777'",
            ),
            ("probe.timeout_s=true", "probe.timeout_s: expected a number above 0 and of at most 86400, given True"),
            ("engin.seed=1", "engin.seed: unknown key (did you mean 'engine'?); keys: allow_distributions,"),
            ("engine.seed.x=1", "engine.seed.x: unknown key; engine.seed has no keys below it: it is a whole number"),
            ("engine=1", "engine: expected a mapping of keys to values, given 1"),
            ("engine={sed: 1}", "engine.sed: unknown key (did you mean 'seed'?)"),
        ],
    )
    def test_a_mistake_names_the_option_and_what_is_expected(self, text, expected):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=[parse_set(text)], environ={})

        assert str(caught.value).startswith(f"command line (--set {text}): {expected}")

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("probe.timeout_s", "5", "given '5', which is a string; write 5.0"),
            ("platform.driver", False, "given False, which is a boolean; quote it"),
        ],
    )
    def test_of_a_keyword_nothing_is_said_of_yaml_which_has_not_read_it(self, key, value, expected):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=[Override(key, value, "LLM(overrides=...)", "keyword")], environ={})

        assert str(caught.value).endswith(expected)

    def test_a_choice_that_is_a_near_miss_gets_a_hint(self):
        with pytest.raises(ConfigError, match=r"given 'vlm' \(did you mean 'vllm'\?\)$"):
            load_config(overrides=[parse_set("host=vlm")], environ={})

    @pytest.mark.parametrize("text", ["engine.seed", "=1", ""])
    def test_set_without_key_or_value_is_refused(self, text):
        with pytest.raises(ConfigError, match=r"\(--set\): expected KEY=VALUE, given"):
            parse_set(text)

    @pytest.mark.parametrize("text", ["custom_ops=[a", "custom_ops=!!python/name:os.sep ''", "engine.seed=!!bool x"])
    def test_set_with_text_that_is_no_yaml_value_is_refused(self, text):
        with pytest.raises(ConfigError, match="is not a YAML value"):
            parse_set(text)


def test_mistakes_of_all_sources_are_in_one_message(file_with):
    with pytest.raises(ConfigError) as caught:
        load_config([file_with("a", "1")], [parse_set("b=1")], environ={"VLLM_EXT_C": "1"})

    assert str(caught.value).startswith("3 mistakes in the settings:\n")
    assert [line.split(" ")[2] for line in str(caught.value).splitlines()[1:]] == ["file", "environment", "command"]
