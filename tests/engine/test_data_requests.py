"""Requests with data: what an IO processor makes of them, and what becomes of its mistakes."""

from __future__ import annotations

import pytest
from support.io_processors import install, install_marked, model_that_names

from vllm_ext import LLM, SamplingParams
from vllm_ext.config import Override, load_config
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.trail import dispatch_trail
from vllm_ext.errors import (
    CheckpointError,
    InvalidRequest,
    PluginError,
    PluginLoadError,
    PluginNotFound,
    plugin_traceback,
)

SOURCE = r"io processor plugin 'split' of dist-split 0\.1"
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def make_llm():
    made: list[LLM] = []

    def make(model=None, name="split", **options) -> LLM:
        made.append(LLM(model, platform="cpu", io_processor_plugin=name, **options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def processor_of(llm: LLM):
    return llm._data_requests.processor


def check_books(llm: LLM) -> None:
    """Neither the engine nor the processor keeps anything of a request."""
    stats = llm.llm_engine.get_stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0.0)
    assert processor_of(llm).kept == {}


class TestAnswers:
    def test_data_becomes_prompts_and_their_outputs_one_answer(self, plugins, make_llm):
        install(plugins)
        llm = make_llm()
        alone = [output.outputs[0].text for output in llm.generate(["She had", "He was"], GREEDY)]

        (output,) = llm.generate({"data": "She had|He was"})

        assert isinstance(output, PoolingRequestOutput)
        assert output.outputs == ("She had|He was", alone)
        assert (output.finished, output.prompt_token_ids) == (True, [])
        check_books(llm)

    def test_one_prompt_that_is_no_list_is_one(self, plugins, make_llm):
        install(
            plugins,
            body="    def pre_process(self, prompt, request_id=None): return {'prompt': prompt}\n"
            "    def post_process(self, outputs, request_id=None): return len(outputs)\n",
        )

        assert make_llm().generate({"data": "She had"})[0].outputs == 1

    def test_every_request_has_an_id_of_its_own_from_pre_to_post(self, plugins, make_llm):
        install(plugins, body="    def post_process(self, outputs, request_id=None): return request_id\n")
        llm = make_llm()

        outputs = [llm.generate({"data": "She had"})[0] for _ in range(3)]

        assert len({output.outputs for output in outputs}) == 3
        assert list(processor_of(llm).kept) == [output.outputs for output in outputs]
        assert [output.request_id for output in outputs] == [output.outputs for output in outputs]

    def test_what_the_prompts_found_in_the_cache_is_counted(self, plugins, make_llm):
        install(plugins)
        llm = make_llm(block_size=1)

        first, second = (llm.generate({"data": "She had been|He was"})[0] for _ in range(2))

        assert first.num_cached_tokens == 0
        assert second.num_cached_tokens > 2

    def test_the_processor_may_have_the_configuration_the_tokenizer_and_the_platform(self, plugins, make_llm):
        body = (
            "    def post_process(self, outputs, request_id=None):\n"
            "        from vllm_ext import current_platform\n"
            "        tokens = self.renderer.tokenizer.encode('She had')\n"
            "        assert self.renderer.get_tokenizer() is self.renderer.tokenizer\n"
            "        return self.vllm_config, tokens, current_platform.device_name\n"
        )
        install(plugins, body=body)
        llm = make_llm()

        vllm_config, tokens, device_name = llm.generate({"data": "She had"})[0].outputs

        assert vllm_config is llm.llm_engine.vllm_config
        assert tokens == llm.generate("She had", GREEDY)[0].prompt_token_ids
        assert device_name == "cpu"

    def test_options_of_the_settings_reach_it(self, plugins, make_llm):
        install(
            plugins,
            body="    def post_process(self, outputs, request_id=None):\n"
            "        return self.vllm_config.additional_config['split']\n",
        )
        llm = make_llm(overrides={"options": {"split": {"colour": "red"}}})

        assert llm.generate({"data": "She had"})[0].outputs == {"colour": "red"}


class TestParameters:
    @staticmethod
    def lengths(llm: LLM, params=None) -> list[int]:
        return llm.generate({"data": "She had|He was"}, params)[0].outputs

    LENGTHS = (
        "    def post_process(self, outputs, request_id=None):\n"
        "        return [len(output.outputs[0].token_ids) for output in outputs]\n"
    )

    def test_the_processor_sees_the_users_and_has_the_last_word(self, plugins, make_llm):
        body = (
            "    def merge_sampling_params(self, params=None):\n        params.max_tokens += 1\n        return params\n"
        )
        install(plugins, body=body + self.LENGTHS)
        given = SamplingParams(max_tokens=2, ignore_eos=True)

        assert self.lengths(make_llm(), given) == [3, 3]
        assert given.max_tokens == 2, "the user's own are not changed"

    def test_they_may_be_others_for_each_prompt(self, plugins, make_llm):
        body = "    def merge_sampling_params(self, params=None):\n"
        body += "        return [SamplingParams(max_tokens=count, ignore_eos=True) for count in (1, 5)]\n"
        install(plugins, body=body + self.LENGTHS)

        assert self.lengths(make_llm()) == [1, 5]

    def test_none_at_all_are_those_of_the_model_directory(self, plugins, make_llm):
        install(plugins, body="    def merge_sampling_params(self, params=None): return None\n" + self.LENGTHS)
        llm = make_llm()

        assert self.lengths(llm) == [llm.get_default_sampling_params().max_tokens] * 2

    def test_the_user_gives_one_for_a_request(self, plugins, make_llm):
        install(plugins)

        with pytest.raises(
            InvalidRequest, match=r"the parameters are \[Samp.*; a request with data takes one Sampling"
        ):
            make_llm().generate({"data": "a|b"}, [GREEDY, GREEDY])

    @pytest.mark.parametrize(
        "returned, shown",
        [("5", r"5 \(int\)"), ("[SamplingParams()]", r"\[SamplingParams.* \(list\)"), ("[3, 4]", r"\[3, 4\] \(list\)")],
    )
    def test_something_else_than_parameters_is_the_processors_mistake(self, plugins, make_llm, returned, shown):
        install(plugins, body=f"    def merge_sampling_params(self, params=None): return {returned}\n")
        llm = make_llm()

        with pytest.raises(
            PluginError,
            match=rf"^{SOURCE}: merge_sampling_params\(\) returned {shown}, not SamplingParams or a list of 2, one for",
        ):
            llm.generate({"data": "a|b"})
        check_books(llm)


class TestChoice:
    def test_without_one_the_request_is_refused_with_what_to_do(self, plugins):
        install(plugins)

        with LLM(platform="cpu") as llm, pytest.raises(InvalidRequest) as caught:
            llm.generate({"data": "She had"})

        assert str(caught.value) == (
            "the request has data, which takes an IO processor: none is chosen. Name one with --io-processor, "
            "LLM(io_processor_plugin=...) or plugins.io_processor.use; installed: split"
        )

    def test_the_settings_choose_one(self, plugins):
        install(plugins)

        with LLM(platform="cpu", overrides={"plugins.io_processor.use": "split"}) as llm:
            assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"

    def test_the_argument_wins_over_the_settings(self, plugins, make_llm):
        install(plugins)

        llm = make_llm(overrides={"plugins.io_processor.use": "nobody"})

        assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"

    def test_a_missing_one_lists_what_exists(self, plugins, make_llm):
        install(plugins)

        with pytest.raises(PluginNotFound) as caught:
            make_llm(name="splitt")

        assert str(caught.value) == (
            "no io processor plugin 'splitt' is installed, which plugins.io_processor.use "
            "(keyword (LLM(io_processor_plugin=...))) names (did you mean 'split'?); installed: split"
        )
        assert caught.value.exit_code == 2

    def test_only_the_wanted_one_is_loaded(self, plugins, make_llm, tmp_path):
        install(plugins)
        install_marked(plugins, "bystander", tmp_path / "bystander-ran")
        install_marked(plugins, "wanted", tmp_path / "wanted-ran")

        llm = make_llm(name="wanted")

        assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"
        assert [path.name for path in tmp_path.glob("*-ran")] == ["wanted-ran"]

    def test_none_is_loaded_where_none_is_wanted(self, plugins, make_llm, tmp_path):
        install_marked(plugins, "bystander", tmp_path / "ran")

        assert make_llm(name=None).generate("She had", GREEDY)[0].finished
        assert not (tmp_path / "ran").exists()


class TestModels:
    """A model directory names a processor: it is data, and runs no code on its own word."""

    def test_one_that_is_not_enabled_by_name_runs_no_code_and_the_start_says_what_to_enable(
        self, plugins, make_llm, tmp_path, caplog
    ):
        install_marked(plugins, "split", tmp_path / "ran")
        model = model_that_names("split", tmp_path)

        llm = make_llm(model, name=None)

        advice = "set plugins.io_processor.enabled=[split], or plugins.io_processor.use=split"
        (warning,) = [message for message in caplog.messages if "IO processor" in message]
        assert warning.startswith(
            f"{model}/config.json names the IO processor plugin 'split', and no code of it is run"
        )
        assert advice in warning
        with pytest.raises(
            InvalidRequest, match=r"the request has data.*not enabled by name\. To allow it, set"
        ) as caught:
            llm.generate({"data": "She had"})
        assert advice in str(caught.value)
        assert llm.generate("She had", GREEDY)[0].finished
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("way", ["enabled", "VLLM_PLUGINS"])
    def test_one_that_is_enabled_by_name_is_used(self, plugins, make_llm, tmp_path, monkeypatch, caplog, way):
        install(plugins)
        if way == "VLLM_PLUGINS":
            monkeypatch.setenv("VLLM_PLUGINS", "split")
        overrides = {"plugins.io_processor.enabled": ["split"]} if way == "enabled" else {}
        overrides["options"] = {"split": {"colour": "red"}}

        llm = make_llm(model_that_names("split", tmp_path), name=None, overrides=overrides)

        assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"
        assert processor_of(llm).vllm_config.additional_config["split"] == {"colour": "red"}
        assert caplog.messages == []

    def test_one_that_is_not_installed_lists_what_exists(self, plugins, make_llm, tmp_path, caplog):
        install(plugins)

        make_llm(model_that_names("splitt", tmp_path), name=None)

        assert "which is not installed (did you mean 'split'?); installed: split. Requests with data" in caplog.text

    def test_the_users_choice_wins(self, plugins, make_llm, tmp_path, caplog):
        install(plugins)

        llm = make_llm(model_that_names("other", tmp_path))

        assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"
        assert caplog.messages == []

    def test_what_is_no_name_is_a_fault_of_the_directory(self, make_llm, tmp_path):
        model = model_that_names(["split"], tmp_path)

        with pytest.raises(
            CheckpointError, match=r"config\.json: io_processor_plugin is \['split'\]; it takes the name"
        ):
            make_llm(model, name=None)

    def test_one_that_is_enabled_and_fails_ends_the_start(self, plugins, make_llm, tmp_path):
        install(plugins, body="1 / 0\n")

        with pytest.raises(PluginLoadError, match=rf"{SOURCE} failed: ZeroDivisionError"):
            make_llm(model_that_names("split", tmp_path), overrides={"plugins.io_processor.enabled": ["split"]})


class TestFaultsOfLoading:
    @pytest.mark.parametrize(
        "body, fault",
        [
            ("raise OSError('no table')\n", "failed: OSError: no table"),
            ("def register(): return None\n", "declined: it returned None"),
            ("def register(): return 'split_io_module.register'\n", "is not a subclass of vllm_ext.contracts.io_proc"),
            ("def register(): return 'nowhere.Processor'\n", "ModuleNotFoundError: No module named 'nowhere'"),
            (
                "    def __init__(self, vllm_config, renderer): raise OSError('no table')\n",
                r"failed in __init__\(\): OSE",
            ),
            *(
                (
                    f"    def __init__({parameters}): pass\n",
                    rf"Processor cannot be built: {complaint}\. It is called with the 2 arguments vllm_config, rend",
                )
                for parameters, complaint in (
                    ("self", "too many positional arguments"),
                    ("self, vllm_config", "too many positional arguments"),
                    ("self, vllm_config, renderer, more", "missing a required argument: 'more'"),
                )
            ),
            (
                "    pre_process = IOProcessor.pre_process\n",
                r": .*Processor does not implement pre_process; vllm_ext.*",
            ),
            (
                "    def __init__(self, vllm_config, renderer): raise SystemExit(3)\n",
                r"failed in __init__\(\): SystemExit",
            ),
            (
                "    def __init__(self, vllm_config, renderer): raise BaseException('panic')\n",
                r"failed in __init__\(\): BaseException: panic",
            ),
        ],
        ids=[
            *(
                "raises",
                "declines",
                "no class",
                "no module",
                "not made",
                "no arguments",
                "one argument",
                "more arguments",
            ),
            *("lacks a method", "exits", "panics"),
        ],
    )
    def test_the_start_ends_with_the_plugins_name(self, plugins, make_llm, body, fault):
        install(plugins, body=body)

        with pytest.raises(PluginLoadError, match=rf"{SOURCE}.*{fault}"):
            make_llm()


class TestFaultsOfRequests:
    REFUSING = (
        "parse_data(self, data)",
        "pre_process(self, prompt, request_id=None)",
        "merge_sampling_params(self, params=None)",
    )
    POST = "post_process(self, outputs, request_id=None)"

    @pytest.mark.parametrize("method", REFUSING, ids=lambda method: method.partition("(")[0])
    def test_a_value_error_before_the_model_refuses_the_request(self, plugins, make_llm, method):
        install(plugins, body=f"    def {method}: raise ValueError('colours are missing')\n")
        llm = make_llm()

        with pytest.raises(InvalidRequest, match=rf"^{SOURCE} refuses the request: colours are missing$"):
            llm.generate({"data": "She had"})
        check_books(llm)

    @pytest.mark.parametrize("method", [*REFUSING, POST], ids=lambda method: method.partition("(")[0])
    @pytest.mark.parametrize(
        "error", ["KeyError('colour')", "SystemExit(3)", "BaseException(3)", "NotImplementedError('colour')"]
    )
    def test_what_else_is_raised_names_plugin_and_method_and_the_engine_goes_on(self, plugins, make_llm, method, error):
        install(plugins, body=f"    def {method}: raise {error}\n")
        llm = make_llm()

        with pytest.raises(
            PluginError, match=rf"^{SOURCE} failed in {method.partition('(')[0]}\(\): {error[:5]}"
        ) as caught:
            llm.generate({"data": "She had"})

        assert "split_io_module.py" in plugin_traceback(caught.value)
        assert llm.generate("She had", GREEDY)[0].finished
        check_books(llm)

    def test_a_value_error_after_the_model_is_the_processors_failure(self, plugins, make_llm):
        install(plugins, body=f"    def {self.POST}: raise ValueError('no table')\n")
        llm = make_llm()

        with pytest.raises(PluginError, match=rf"^{SOURCE} failed in post_process\(\): ValueError: no table"):
            llm.generate({"data": "She had"})
        check_books(llm)

    @pytest.mark.parametrize(
        "returned, complaint",
        [
            ("[]", "no prompt$"),
            ("()", "no prompt$"),
            ("None", r"None \(NoneType\), which is no prompt and no list of prompts"),
            ("5", r"5 \(int\), which is no prompt"),
            ("['She had', 5.0]", r"5\.0 \(float\), which is no prompt"),
            ("{'data': 'again'}", r"\{'data': 'again'\} \(dict\), which is no prompt"),
            ("(text for text in ('a', 'b'))", r"<generator .* which is no prompt"),
        ],
    )
    def test_what_is_no_prompt_is_the_processors_failure(self, plugins, make_llm, returned, complaint):
        install(plugins, body=f"    def pre_process(self, prompt, request_id=None): return {returned}\n")

        with pytest.raises(PluginError, match=rf"^{SOURCE}: pre_process\(\) returned {complaint}"):
            make_llm().generate({"data": "She had"})

    def test_a_prompt_that_the_engine_refuses_is_said_to_be_the_processors(self, plugins, make_llm):
        install(plugins)
        llm = make_llm()

        with pytest.raises(
            InvalidRequest, match=rf"^{SOURCE} made a prompt that is refused: prompt 1: the prompt is empty"
        ):
            llm.generate({"data": "She had|"})
        check_books(llm)

    def test_a_processor_that_cannot_forget_is_reported_and_hides_no_error(self, plugins, make_llm, caplog):
        body = "    def post_process(self, outputs, request_id=None): raise KeyError('colour')\n"
        install(plugins, body=body + "    def discard(self, request_id): raise OSError('no table')\n")

        with pytest.raises(PluginError, match="KeyError: 'colour'"):
            make_llm().generate({"data": "She had"})

        assert "failed in discard(): OSError: no table; what it keeps of request 'data-" in caplog.text

    def test_an_interrupt_in_the_middle_leaves_nothing(self, plugins, make_llm, monkeypatch):
        install(plugins)
        llm = make_llm()
        step = llm.llm_engine.step

        def interrupted():
            step()
            raise KeyboardInterrupt

        monkeypatch.setattr(llm.llm_engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate({"data": "She had|He was"})
        monkeypatch.setattr(llm.llm_engine, "step", step)

        assert llm.generate({"data": "She had"})[0].outputs[0] == "She had"
        check_books(llm)


class TestPooling:
    """``encode`` instead of ``generate``: the prompts are pooled."""

    VECTORS = (
        "    def post_process(self, outputs, request_id=None):\n"
        "        return self.kept.pop(request_id), [output.outputs.data.tolist() for output in outputs]\n"
    )

    @pytest.mark.parametrize("task", ["plugin", None])
    def test_the_prompts_are_pooled_as_the_model_is_meant_to(self, plugins, make_llm, task):
        install(plugins, body=self.VECTORS)
        llm = make_llm(runner="pooling")
        alone = [llm.encode(text)[0].outputs.data.tolist() for text in ("She had", "He was")]

        (output,) = llm.encode({"data": "She had|He was"}, pooling_task=task)

        assert output.outputs[0] == "She had|He was"
        assert output.outputs[1] == [pytest.approx(vector, abs=1e-5) for vector in alone]
        check_books(llm)

    def test_another_task_for_the_call_is_refused(self, plugins, make_llm):
        install(plugins)

        with pytest.raises(
            InvalidRequest, match="pooling_task is 'embed'; a request with data takes 'plugin', or none"
        ):
            make_llm(runner="pooling").encode({"data": "She had"}, pooling_task="embed")

    def test_parameters_of_the_other_kind_are_refused(self, plugins, make_llm):
        install(plugins)

        with pytest.raises(InvalidRequest, match="a request with data takes one PoolingParams"):
            make_llm(runner="pooling").encode({"data": "She had"}, GREEDY)

    def test_data_for_a_model_of_the_other_kind_is_refused_and_forgotten(self, plugins, make_llm):
        install(plugins)
        pooling, generating = make_llm(runner="pooling"), make_llm()

        for llm, call in ((pooling, pooling.generate), (generating, generating.encode)):
            with pytest.raises(InvalidRequest, match=rf"^{SOURCE} made a prompt that is refused: "):
                call({"data": "She had"})
            check_books(llm)


class TestForms:
    def test_data_stands_alone_in_its_request(self, plugins, make_llm):
        install(plugins)

        with pytest.raises(InvalidRequest, match="a request with 'data' has nothing besides; found 'format'"):
            make_llm().generate({"data": "She had", "format": "text"})

    def test_data_among_prompts_or_where_prompts_are_wanted_is_refused(self, plugins, make_llm):
        install(plugins)
        llm = make_llm()

        with pytest.raises(InvalidRequest, match=r"prompt 1: \{'data': ...\} is for an IO processor, and stands alone"):
            llm.generate(["She had", {"data": "He was"}])
        with pytest.raises(InvalidRequest, match=r"\{'data': ...\} is for an IO processor, and stands alone"):
            next(llm.stream({"data": "He was"}))

    def test_an_older_processor_may_call_it_parse_request(self, plugins, make_llm):
        install(plugins, body="    parse_request = parse_data\n    parse_data = IOProcessor.parse_data\n")

        with pytest.warns(
            DeprecationWarning, match=r"Processor implements parse_request\(\).*0\.3\.0 removes; use parse_d"
        ):
            assert make_llm().generate({"data": "She had"})[0].outputs[0] == "She had"

    def test_one_that_reads_no_data_says_so(self, plugins, make_llm):
        install(plugins, body="    parse_data = IOProcessor.parse_data\n")

        with pytest.raises(
            PluginError, match=r"failed in parse_data\(\): .*Processor does not implement parse_data\(\)"
        ):
            make_llm().generate({"data": "She had"})


class TestExplained:
    """The trail has every processor, why it is used or not, and what a model wants in vain."""

    @staticmethod
    def trail(model=None, name: str | None = None, **settings) -> list[tuple[str, str, str]]:
        overrides = [Override(key, value, "--set") for key, value in settings.get("overrides", {}).items()]
        overrides += [Override("engine.model", str(model), "--set")] if model else []
        overrides += [Override("plugins.io_processor.use", name, "--set")] if name else []
        steps = dispatch_trail(bootstrap(load_config(overrides=overrides)).dispatcher())
        return [(step.candidate, step.state, step.reason) for step in steps if step.slot == "io_processor"]

    def test_the_users_choice_and_the_others(self, plugins):
        install(plugins, "other")
        install(plugins)

        assert self.trail(name="split") == [
            ("'split' of dist-split 0.1", "chosen", "named in plugins.io_processor.use"),
            ("'other' of dist-other 0.1", "available", "plugins.io_processor.use does not name it"),
        ]

    def test_the_models_choice(self, plugins, tmp_path):
        install(plugins)
        model = model_that_names("split", tmp_path)
        reason = f"{model}/config.json names it, and plugins.io_processor.enabled allows it"

        trail = self.trail(model, overrides={"plugins.io_processor.enabled": ["split"]})

        assert trail == [("'split' of dist-split 0.1", "chosen", reason)]

    def test_what_a_model_wants_in_vain_runs_no_code(self, plugins, tmp_path):
        install_marked(plugins, "split", tmp_path / "ran")

        refused, available = self.trail(model_that_names("split", tmp_path))

        assert refused[:2] == ("", "refused")
        assert "not enabled by name" in refused[2]
        assert available[:2] == ("'split' of dist-split 0.1", "available")
        assert not (tmp_path / "ran").exists()

    def test_one_that_fails(self, plugins):
        install(plugins, body="1 / 0\n")

        failed, selected = self.trail(name="split")

        assert failed[1] == "failed"
        assert "ZeroDivisionError" in failed[2]
        assert selected[:2] == ("'split' of dist-split 0.1", "selected")
