"""Which stat loggers an engine gets, and what is said of those that cannot be used."""

from __future__ import annotations

import functools
import logging
import shutil

import pytest
from support.async_engine import own_threads
from support.fake_engine import make_vllm_config
from support.stats import Kept

from vllm_ext import LLM, AggregateStatLoggerBase
from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.dispatch.stat_loggers import StatLoggers
from vllm_ext.errors import ContractError, PluginError, PluginLoadError, PluginNotFound, Unavailable
from vllm_ext.managers import policy

GROUP = "vllm.stat_logger_plugins"
SOURCE = """
from vllm_ext import StatLoggerBase, Unavailable
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0):
        {init}
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): pass
    def log_engine_initialized(self): pass
"""

ADAPTED = """
import functools
def adapted(record):
    @functools.wraps(record)
    def call(self, **stats): record(self, None, **stats)
    return call
"""


@pytest.fixture(autouse=True)
def _reports():
    policy.forget_reports()


@pytest.fixture
def install(plugins):
    def install(name: str, init: str = "pass", source: str = SOURCE) -> None:
        files = {f"{name}_module.py": source.replace("{init}", init)}
        plugins.distribution(f"dist_{name}", {GROUP: [f"{name} = {name}_module:Logger"]}, files)

    return install


def loggers(*factories, **settings) -> list[str]:
    """The sources of the loggers that are built."""
    overrides = [Override(key.replace("__", "."), value, "--set") for key, value in settings.items()]
    plan = make_plan(load_config(overrides=overrides)).bind(None)
    config = make_vllm_config()
    config.additional_config.update(plan.options)
    return [source for source, _ in StatLoggers(plan, factories).build(config)]


class TestPlugins:
    def test_those_of_others_are_built_and_ours_are_not(self, install):
        install("a")
        install("b")

        assert loggers() == ["stat logger plugin 'a' of dist-a 0.1", "stat logger plugin 'b' of dist-b 0.1"]

    def test_ours_are_built_where_they_are_named(self):
        assert loggers(plugins__stat_logger__enabled=["logging"]) == ["stat logger plugin 'logging' of vllm-ext 0.1.0"]

    def test_ours_are_built_where_stats_are_to_be_logged_unless_they_lack_something(self):
        names = ("logging", "prometheus")

        assert loggers(engine__disable_log_stats=False) == [
            f"stat logger plugin {name!r} of vllm-ext 0.1.0" for name in names
        ]

    def test_a_class_that_is_no_stat_logger_is_refused_when_it_is_loaded(self, install, caplog):
        install("odd", source="class Logger: pass\n")
        install("good")

        assert loggers() == ["stat logger plugin 'good' of dist-good 0.1"]
        (message,) = caplog.messages
        assert "stat logger plugin 'odd' of dist-odd 0.1 is left out, since it failed" in message
        assert "is not a subclass of vllm_ext.contracts.stat_logger.StatLoggerBase" in message

    @pytest.mark.parametrize(
        "old, new, complaint",
        [
            (
                ", mm_cache_stats=None, engine_idx=0",
                ", engine_idx=0",
                "old_module.Logger defines record(self, scheduler_stats, iteration_stats, engine_idx=0), which is "
                "called as record(scheduler_stats=..., iteration_stats=..., mm_cache_stats=..., engine_idx=...): got "
                "an unexpected keyword argument 'mm_cache_stats'",
            ),
            (
                "vllm_config, engine_index=0",
                "vllm_config",
                "old_module.Logger cannot be built: too many positional arguments. It is called with the 2 arguments "
                "vllm_config, engine_index, by position",
            ),
        ],
    )
    def test_one_for_an_older_vllm_is_refused_when_it_is_loaded(self, install, caplog, old, new, complaint):
        install("old", source=SOURCE.replace(old, new))
        install("good")

        assert loggers() == ["stat logger plugin 'good' of dist-good 0.1"]
        (message,) = caplog.messages
        assert "stat logger plugin 'old' of dist-old 0.1 is left out, since it failed: ContractError: " in message
        assert complaint in message

    def test_what_a_decorator_made_of_record_counts(self, install):
        decorated = SOURCE.replace("    def record(self, ", "    @adapted\n    def record(self, first, ")
        install("good", source=ADAPTED + decorated)

        assert loggers() == ["stat logger plugin 'good' of dist-good 0.1"]

    def test_one_that_is_named_and_no_stat_logger_stops_the_start(self, install):
        install("odd", source="class Logger: pass\n")

        with pytest.raises(PluginLoadError, match="'odd' of dist-odd 0.1 failed.*is not a subclass of"):
            loggers(plugins__stat_logger__enabled=["odd"])

    @pytest.mark.parametrize("init", ["raise RuntimeError('no disk')", "assert False, 'no disk'", "exit('no disk')"])
    def test_one_that_was_found_and_cannot_be_built_is_left_out_and_said_once(self, install, caplog, init):
        install("bad", init)
        install("good")

        assert loggers() == loggers() == ["stat logger plugin 'good' of dist-good 0.1"]
        (message,) = caplog.messages
        assert message.startswith("stat logger plugin 'bad' of dist-bad 0.1 is left out, since it failed: ")
        assert message.endswith("no disk")

    def test_one_that_is_named_and_cannot_be_built_stops_the_start(self, install):
        install("bad", "raise RuntimeError('no disk')")

        with pytest.raises(PluginLoadError, match="'bad' of dist-bad 0.1 failed: RuntimeError: no disk"):
            loggers(plugins__stat_logger__enabled=["bad"])

    def test_one_that_declines_is_left_out_without_a_warning(self, install, caplog):
        caplog.set_level(logging.INFO)
        install("picky", "raise Unavailable('no server')")

        assert loggers() == []
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "since it declined: no server" in caplog.text

    def test_a_secret_among_its_options_is_not_in_the_message(self, install, caplog):
        install("leaky", "raise RuntimeError('token is ' + vllm_config.additional_config['leaky']['token'])")
        loggers(options={"leaky": {"token": "s3cr3t-value"}})

        assert "token is" in caplog.text
        assert "s3cr3t-value" not in caplog.text


class TestArguments:
    def test_a_class_is_built_with_the_configuration_and_the_engines_number_by_position(self):
        made = []
        config = make_vllm_config()
        plan = make_plan(load_config()).bind(None)

        class Mine(Kept):
            def __init__(self, *args) -> None:
                super().__init__(*args)
                made.append(args)

        (named,) = StatLoggers(plan, [Mine]).build(config)

        assert made == [(config, 0)]
        assert isinstance(named.logger, Mine)

    def test_a_class_for_all_engines_gets_a_list_of_their_numbers(self):
        made = []

        class Mine(AggregateStatLoggerBase):
            def __init__(self, vllm_config, engine_indexes) -> None:
                made.append(engine_indexes)

            def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None: ...

            def log_engine_initialized(self) -> None: ...

        loggers(Mine)

        assert made == [[0]]

    def test_any_callable_will_do(self):
        method, partial = loggers(Kept().make, functools.partial(Kept))

        assert method == "stat logger 'Kept.make' of the argument stat_loggers"
        assert "functools.partial(<class 'support.stats.Kept'>)" in partial

    def test_a_class_that_is_a_plugin_as_well_is_built_once(self, install):
        install("a")
        import a_module

        assert loggers(a_module.Logger) == ["stat logger plugin 'a' of dist-a 0.1"]

    def test_what_cannot_be_called_is_refused(self):
        with pytest.raises(ContractError, match=r"stat_loggers holds 'logging'; it takes classes of stat loggers, or"):
            loggers("logging")

    def test_what_makes_something_else_is_refused(self):
        def other(*_):
            return {}

        other.__qualname__ = "other"
        with pytest.raises(ContractError, match=r"'other' of the argument stat_loggers made \{\}, which is no"):
            loggers(other)

    def test_one_whose_record_takes_other_arguments_is_refused(self):
        class Old(Kept):
            def record(self, scheduler_stats, iteration_stats, engine_idx=0): ...

        with pytest.raises(ContractError, match=r"Old defines record\(.*\), which is called as .*'mm_cache_stats'"):
            loggers(Old)

    @pytest.mark.parametrize(
        "error", [RuntimeError("no disk"), SystemExit("no disk"), BaseException("no disk"), Unavailable("no disk")]
    )
    def test_one_that_fails_stops_the_start(self, error):
        def bad(vllm_config, engine_index):
            raise error

        bad.__qualname__ = "bad"
        with pytest.raises(PluginError, match="no disk"):
            loggers(bad)


class TestStart:
    def test_a_logger_that_fails_ends_the_engine_that_was_started_and_its_other_loggers(self, random_llama):
        def bad(vllm_config, engine_index):
            raise RuntimeError("no disk")

        with pytest.raises(PluginError, match="failed when it was built: RuntimeError: no disk"):
            LLM(random_llama, platform="cpu", stat_loggers=[Kept, bad])
        assert own_threads() == []

    def test_a_named_plugin_that_is_none_stops_the_start_before_a_model_loads(self, install, random_llama, tmp_path):
        install("odd", source="class Logger: pass\n")
        model = shutil.copytree(random_llama, tmp_path / "without-weights")
        (model / "model.safetensors").unlink()

        with pytest.raises(PluginLoadError, match="is not a subclass of"):
            LLM(model, platform="cpu", overrides={"plugins.stat_logger.enabled": ["odd"]})

    def test_a_logger_of_ours_that_is_named_and_lacks_its_file_stops_the_start(self, random_llama):
        with pytest.raises(PluginLoadError, match=r"'jsonl' of vllm-ext .* declined: options.jsonl.path names no file"):
            LLM(random_llama, platform="cpu", overrides={"plugins.stat_logger.enabled": ["jsonl"]})

    def test_a_misspelt_name_is_an_error_with_the_names_that_exist(self):
        with pytest.raises(PluginNotFound, match=r"no stat logger plugin 'loging'.*did you mean 'logging'"):
            loggers(plugins__stat_logger__enabled=["loging"])


def test_a_path_that_is_no_file_stops_the_start(tmp_path):
    with pytest.raises(PluginLoadError, match=r"options.jsonl.path is '.*', which cannot be written: Is a directory"):
        loggers(plugins__stat_logger__enabled=["jsonl"], options={"jsonl": {"path": str(tmp_path)}})
