"""``vllm-ext explain``: who chose what, and what was passed over."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest
from support.device import BACKEND_OF_CPU
from support.hook_platform import install_platform
from support.plugins import write_distribution
from support.stand_in_vllm import install_vllm

from vllm_ext import _custom_ops

BEFORE_IT = "it could serve; REFERENCE comes before it"
PLATFORM_CLASS = """
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext import PlatformEnum
class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
    device_name = "cpu"
"""


@pytest.fixture
def install(plugins):
    def install(name, body=None):
        answer = f"return {name + '_p.Npu'!r}"
        code = f"def register():\n    {body or answer}\n"
        files = {f"{name}_p.py": code + PLATFORM_CLASS}
        plugins.distribution(name, {"vllm.platform_plugins": [f"{name} = {name}_p:register"]}, files)

    return install


def steps(done, slot):
    return [(row["candidate"], row["state"], row["reason"], row["origin"]) for row in done.out if row["slot"] == slot]


def test_every_slot_has_what_was_chosen_and_who_chose_it(vllm_ext):
    done = vllm_ext("explain", "-f", "json", "--platform", "cpu")

    assert done.code == 0
    assert steps(done, "worker") == [
        ("vllm_ext.worker.worker.Worker", "chosen", "platform 'cpu' chose it", "platform:cpu")
    ]
    assert steps(done, "attention")[0][0] == f"{BACKEND_OF_CPU.__module__}.{BACKEND_OF_CPU.__qualname__}"
    assert steps(done, "communicator")[0][1] == "chosen"
    assert "rms_norm" in str(steps(done, "ops"))


@pytest.mark.parametrize("arguments", [("explain",), ("explain", "worker"), ("run",), ("run", "--data", "-")])
def test_with_vllm_as_the_host_nothing_is_run_and_no_rows_are_shown(vllm_ext, plugins, monkeypatch, arguments):
    plugins.distribution("vllm", {}, {"vllm/__init__.py": ""})
    body = "import sys\ndef run(): print('it ran', file=sys.stderr)\n"
    plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:run"]}, {"acme.py": body})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))

    done = vllm_ext(*arguments, "--set", "host=vllm")

    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "ERROR: host (command line (--set host=vllm)) is 'vllm', and the engine that comes with vllm-ext is the host "
        "'embedded'; set host to that, or start vLLM itself; 'vllm-ext list --load' tries its plugins\n"
    )


def test_with_vllm_as_the_host_platform_and_general_plugins_are_explained(vllm_ext, plugins):
    install_vllm(plugins)
    body = "import sys\ndef run(): print('it ran', file=sys.stderr)\ndef npu(): return None\n"
    groups = {"vllm.general_plugins": ["a = acme:run"], "vllm.platform_plugins": ["npu = acme:npu"]}
    plugins.distribution("acme", groups, {"acme.py": body})

    platforms = vllm_ext("explain", "platform", "-f", "json", "--set", "host=vllm")
    general = vllm_ext("explain", "general", "-f", "json", "--set", "host=vllm")
    with_run = vllm_ext("explain", "platform", "--run", "--set", "host=vllm")

    assert (platforms.code, general.code, with_run.code) == (0, 0, 2)
    assert [(row["candidate"], row["state"]) for row in platforms.out][:2] == [
        ("'cpu' of vllm 0.1", "chosen"),
        ("'npu' of acme 0.1", "unavailable"),
    ]
    assert [(row["candidate"], row["state"]) for row in general.out] == [("'a' of acme 0.1", "active")]
    assert (with_run.out, "the host 'embedded'" in with_run.err) == ("", True)


def test_attention_backends_have_the_reason_why_each_was_passed_over(vllm_ext):
    done = vllm_ext("explain", "attention", "-f", "json", "--platform", "cpu", "--set", "attention.backend=reference")

    assert [row[:2] for row in steps(done, "attention")] == [
        ("vllm_ext.attention.backends.reference.ReferenceBackend", "chosen"),
        ("vllm_ext.attention.backends.cpu_attn.CPUAttentionBackend", "passed_over"),
        ("vllm_ext.attention.backends.sdpa.SDPABackend", "passed_over"),
    ]
    assert {row["owner"] for row in done.out} == {"vllm_ext itself"}
    chosen, kernels, sdpa = (row[2] for row in steps(done, "attention"))
    assert chosen == "attention.backend names it (REFERENCE, registered by vllm_ext itself)"
    missing = _custom_ops.why_missing()
    assert kernels.startswith(f"there are no compiled kernels: {missing}" if missing else BEFORE_IT)
    assert sdpa.startswith(BEFORE_IT)


def test_an_attention_backend_that_is_named_and_cannot_serve_is_a_failed_slot(vllm_ext):
    done = vllm_ext("explain", "attention", "-f", "json", "--platform", "cpu", "--set", "attention.backend=flash_attn")

    assert done.code == 2
    assert steps(done, "attention")[0][1:3] == (
        "failed",
        "attention.backend is 'FLASH_ATTN', for which no plugin has registered a class; "
        "registered: CPU_ATTN, REFERENCE, SDPA",
    )


def test_a_platform_that_declined_is_there_with_its_reason(vllm_ext, install):
    install("npu", "from vllm_ext import Unavailable; raise Unavailable('no device')")

    done = vllm_ext("explain", "platform", "-f", "json")

    assert [row["slot"] for row in done.out] == ["platform", "platform"]
    assert steps(done, "platform")[0][1] == "chosen"
    assert ("'npu' of npu 0.1", "unavailable", "platform.driver is auto; no device", "default") in steps(
        done, "platform"
    )


def test_where_none_can_be_chosen_the_trail_comes_before_the_error(vllm_ext, install):
    install("npu", "return None")

    done = vllm_ext("explain", "-f", "json", "--platform", "npu")

    assert done.code == 3
    assert [(row["candidate"], row["state"]) for row in done.out] == [
        ("'npu' of npu 0.1", "unavailable"),
        ("'cpu' of vllm-ext 0.1.0", "available"),
    ]
    assert "platform plugin 'npu' of npu 0.1 declined" in done.err


def test_a_class_path_of_the_settings_is_named_as_its_origin(vllm_ext):
    done = vllm_ext("explain", "worker", "-f", "json", "--set", "worker.cls=vllm_ext.worker.worker.Worker")

    assert steps(done, "worker") == [
        (
            "vllm_ext.worker.worker.Worker",
            "chosen",
            "worker.cls names it",
            "command line (--set worker.cls=vllm_ext.worker.worker.Worker)",
        )
    ]


def test_a_class_that_cannot_be_used_is_shown_with_the_reason(vllm_ext):
    done = vllm_ext("explain", "worker", "-f", "json", "--set", "worker.cls=json.JSONDecoder")

    ((_, state, reason, _),) = steps(done, "worker")
    assert state == "failed"
    assert "'json.JSONDecoder' is not a subclass of vllm_ext.contracts.worker.WorkerBase" in reason


def test_general_plugins_have_what_became_of_them(vllm_ext, plugins):
    """Those of a distribution whose platform was passed over among them."""
    code = "def good(): ...\ndef bad(): raise OSError('no licence')\ndef idle(): ...\n"
    lines = [f"{name} = acme:{name}" for name in ("good", "bad", "idle")]
    plugins.distribution("acme", {"vllm.general_plugins": lines}, {"acme.py": code})
    entry_points = {"vllm.platform_plugins": ["npu = zeta:npu"], "vllm.general_plugins": ["ops = zeta:ops"]}
    plugins.distribution("zeta", entry_points, {})

    done = vllm_ext("explain", "general", "-f", "json", "--platform", "cpu", "--set", "plugins.general.disabled=[idle]")

    assert {candidate: (state, reason) for candidate, state, reason, _ in steps(done, "general")} == {
        "'good' of acme 0.1": ("active", "plugins.general.enabled is all"),
        "'bad' of acme 0.1": ("failed", "plugins.general.enabled is all; OSError: no licence"),
        "'idle' of acme 0.1": ("disabled", "disabled by plugins.general.disabled"),
        "'ops' of zeta 0.1": (
            "passed_over",
            "plugins.general.enabled is all; platform 'zeta:npu' of its distribution is not used, 'vllm-ext:cpu' is",
        ),
    }


def test_replaced_ops_name_both_classes(vllm_ext, plugins):
    plugins.project("vllm_ext_dummy_platform")

    done = vllm_ext("explain", "ops", "-f", "json", "--platform", "dummy")

    assert any(
        "my_dummy_custom_ops" in candidate and "in place of" in reason for candidate, _, reason, _ in steps(done, "ops")
    )


def test_a_hidden_copy_of_the_chosen_platform_is_not_chosen(vllm_ext, install, tmp_path, monkeypatch):
    install("npu")
    entry_points = {"vllm.platform_plugins": ["npu = npu_p:register"]}
    write_distribution(tmp_path / "old", "npu", entry_points, {}, "0.0.1")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "old")])

    rows = steps(vllm_ext("explain", "platform", "-f", "json", "--platform", "npu"), "platform")

    assert [(candidate, state) for candidate, state, *_ in rows][:2] == [
        ("'npu' of npu 0.1", "chosen"),
        ("'npu' of npu 0.0.1", "shadowed"),
    ]


def test_where_no_engine_can_be_built_the_trail_comes_before_the_error(vllm_ext):
    done = vllm_ext("explain", "-f", "json", "--set", "platform.disabled=[cpu]")

    assert done.code == 3
    assert [(row["candidate"], row["state"]) for row in done.out] == [("'cpu' of vllm-ext 0.1.0", "disabled")]
    assert "no platform is available to build an engine on" in done.err


def test_a_hook_that_raises_is_a_failed_slot_with_the_platforms_name(vllm_ext, plugins):
    hook = "    @classmethod\n    def get_device_communicator_cls(cls):\n        raise KeyError('x')\n"
    code = f"def register():\n    return 'npu_p.Npu'\n{PLATFORM_CLASS}{hook}"
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu_p:register"]}, {"npu_p.py": code})

    ((_, state, reason, _),) = steps(vllm_ext("explain", "communicator", "-f", "json"), "communicator")

    assert state == "failed"
    assert reason == "platform 'npu' of npu 0.1 (npu_p.Npu) failed: KeyError: 'x'"


def test_notes_are_said_once(vllm_ext):
    done = vllm_ext("explain", "platform", "-f", "json", "--set", "plugins.general.disabled=[ghost]")

    assert done.err.count("disables 'ghost', which is not installed") == 1


def test_a_slot_that_does_not_exist_is_wrong_usage(vllm_ext):
    with pytest.raises(SystemExit, match="2"):
        vllm_ext("explain", "wroker")


@pytest.mark.parametrize("setting, code", [("worker.cls=nope.X", 1), ("attention.backend=flash", 2)])
def test_a_slot_that_cannot_be_filled_is_the_exit_code(vllm_ext, setting, code):
    assert vllm_ext("explain", "-f", "json", "--set", setting).code == code


def test_what_the_platforms_hooks_changed_is_there_with_its_origin(vllm_ext):
    done = vllm_ext("explain", "config", "-f", "json", "--platform", "cpu")

    assert steps(done, "config") == [
        (
            "parallel_config.worker_cls",
            "changed",
            "check_and_update_config() changed it from 'auto' to 'vllm_ext.worker.worker.Worker'",
            "platform:cpu",
        )
    ]


def test_a_worker_that_the_settings_name_is_chosen_and_the_hooks_is_passed_over(vllm_ext, plugins):
    install_platform(plugins, 'vllm_config.parallel_config.worker_cls = "acme_npu.NpuWorker"')
    own = "vllm_ext.worker.worker.Worker"

    done = vllm_ext("explain", "-f", "json", "--platform", "npu", "--set", f"worker.cls={own}")

    ((worker, state, reason, _),) = steps(done, "worker")
    assert (worker, state, reason) == (own, "chosen", "worker.cls names it")
    assert steps(done, "config") == [
        (
            "parallel_config.worker_cls",
            "passed_over",
            f"check_and_update_config() changed it to 'acme_npu.NpuWorker'; worker.cls names '{own}', which holds",
            f"command line (--set worker.cls={own})",
        )
    ]


def test_what_a_hook_sets_and_no_field_holds_is_passed_over(vllm_ext, plugins):
    install_platform(plugins, "vllm_config.compilation_config.mode = 3")

    done = vllm_ext("explain", "config", "-f", "json", "--platform", "npu")

    reason = "check_and_update_config() set it to 3; it is no field, and vllm-ext does not act on it"
    assert ("compilation_config.mode", "passed_over", reason, "platform:npu") in steps(done, "config")


def test_secret_options_are_not_shown_whatever_a_platform_does_with_them(vllm_ext, plugins):
    hook = 'options = vllm_config.additional_config["npu"]\n'
    hook += 'options["seen"] = True\nvllm_config.cache_config.npu_login = "me:" + options["api_key"]'
    attention = "def refuse(cls, selected_backend, **_): raise OSError('hunter2 is refused')\n"
    install_platform(plugins, hook, f"{attention}Npu.get_attn_backend_cls = classmethod(refuse)\n")

    done = vllm_ext("explain", "-f", "json", "--platform", "npu", "--set", "options.npu.api_key=hunter2")

    assert "'api_key': '********', 'seen': True" in str(steps(done, "config"))
    assert "me:********" in str(steps(done, "config"))
    assert "OSError: ******** is refused" in str(steps(done, "attention"))
    assert "hunter2" not in str(done)


def used(done, slot):
    return {
        row["candidate"]: (row["state"], row["at_start"], row["in_steps"]) for row in done.out if row["slot"] == slot
    }


class TestRun:
    """4 tokens of the model in the box: 4 layers, 5 steps of which the last has no tokens."""

    def test_every_slot_says_how_often_it_was_used(self, vllm_ext):
        done = vllm_ext("explain", "--run", "-f", "json", "--platform", "cpu")

        assert (done.code, done.err) == (0, "")
        assert used(done, "worker") == {"vllm_ext.worker.worker.Worker": ("chosen", 1, 9)}
        assert "execute_model 5; sample_tokens 4" in steps(done, "worker")[0][2]
        assert next(iter(used(done, "attention").values())) == ("chosen", 4, 16)
        ((_, built, calls),) = used(done, "communicator").values()
        assert (built, calls) == (1, 4 * (1 + 2 * 4) + 4), "sums over the embedding and twice a layer; one gather"
        ((state, at_start, in_steps),) = used(done, "platform").values()
        assert (state, in_steps) == ("chosen", 10), "a request, its length, and 4 steps of two calls"
        assert at_start > 10
        ops = used(done, "ops")
        assert ops["vllm_ext.layers.layernorm.RMSNorm"] == ("chosen", 9, 36)
        assert ops["vllm_ext.layers.rotary_embedding.RotaryEmbedding"] == ("chosen", 1, 16)
        assert ops["vllm_ext.worker.sampling.sampler.Sampler"] == ("chosen", 1, 4)
        assert ops["vllm_ext.layers.activation.GeluAndMul"] == ("unused", 0, 0)
        assert used(done, "registries") == {
            "load format 'auto'": ("used", 1, ""),
            "model architecture 'LlamaForCausalLM'": ("used", 1, ""),
            "tokenizer mode 'auto'": ("used", 1, ""),
        }

    def test_who_registered_it_is_there(self, vllm_ext, plugins):
        plugins.project("vllm_ext_dummy_platform")

        done = vllm_ext("explain", "--run", "-f", "json", "--platform", "dummy")

        owners = {row["candidate"].rpartition(".")[2]: row["owner"] for row in done.out}
        assert owners["MyDummyWorker"] == "vllm-ext-dummy-platform 0.1"
        assert owners["MyDummyAttention"] == "plugin 'dummy' of vllm-ext-dummy-platform"
        assert owners["MyDummyRMSNorm"] == "plugin 'dummy_ops' of vllm-ext-dummy-platform"
        assert owners["QKVParallelLinear"] == "vllm_ext itself"

    def test_what_was_registered_in_vain_is_a_warning(self, vllm_ext, plugins):
        plugins.project("vllm_ext_dummy_platform")

        done = vllm_ext("explain", "ops", "--run", "-f", "json", "--platform", "dummy")

        unused = {candidate for candidate, (state, *_) in used(done, "ops").items() if state == "unused"}
        assert "vllm_ext_dummy_platform.my_dummy_custom_ops.MyDummyGeluAndMul" in unused
        (line,) = [line for line in done.err.splitlines() if "registered" in line]
        assert line.startswith(
            "WARNING: plugin 'dummy_ops' of vllm-ext-dummy-platform registered "
            "vllm_ext_dummy_platform.my_dummy_custom_ops.MyDummyGeluAndMul, and the run did not use it"
        )
        assert done.code == 0

    def test_a_general_plugin_says_how_much_of_it_was_asked_for(self, vllm_ext, plugins):
        code = "from vllm_ext import ModelRegistry\ndef register(): ModelRegistry.register_model('Mine', 'acme:Mine')\n"
        plugins.distribution("acme", {"vllm.general_plugins": ["models = acme:register"]}, {"acme.py": code})

        done = vllm_ext("explain", "--run", "-f", "json", "--platform", "cpu")

        ((_, _, reason, _),) = steps(done, "general")
        assert reason == "plugins.general.enabled is all; it registered 1, of which the engine asked for 0"
        assert used(done, "registries")["model architecture 'Mine'"] == ("unused", 0, "")
        assert "plugin 'models' of acme registered model architecture 'Mine', and the run did not use it" in done.err

    def test_a_subclass_of_a_replaced_op_is_kept_and_that_is_said(self, vllm_ext, plugins, install):
        install("npu")
        code = """
            from vllm_ext import ModelRegistry
            from vllm_ext.layers.layernorm import RMSNorm
            from vllm_ext.models.llama import LlamaForCausalLM

            class Own(RMSNorm):
                pass

            class Theirs(RMSNorm):
                pass

            class Model(LlamaForCausalLM):
                def __init__(self, vllm_config, prefix=""):
                    super().__init__(vllm_config, prefix)
                    self.model.norm = Own(self.model.norm.hidden_size)

            def register():
                RMSNorm.register_oot(Theirs)
                ModelRegistry.register_model("LlamaForCausalLM", Model)
        """
        plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:register"]}, {"acme.py": dedent(code)})

        done = vllm_ext("explain", "ops", "--run", "-f", "json")

        ops = used(done, "ops")
        assert ops["acme.Theirs"] == ("chosen", 8, 32)
        assert ops["acme.Own"] == ("kept", 1, 4)
        (reason,) = [reason for candidate, _, reason, _ in steps(done, "ops") if candidate == "acme.Own"]
        assert reason.startswith("a subclass of vllm_ext.layers.layernorm.RMSNorm, and only that class itself is repl")

    def test_where_no_engine_can_be_built_the_trail_comes_before_the_error(self, vllm_ext):
        done = vllm_ext("explain", "--run", "-f", "json", "--set", "engine.tensor_parallel_size=2")

        assert done.code == 2
        assert used(done, "worker") == {"vllm_ext.worker.worker.Worker": ("chosen", "", "")}
        assert "executor 'uniproc' runs one worker" in done.err

    def test_what_does_not_activate_is_the_exit_code(self, vllm_ext, install):
        install("npu", "return None")

        assert vllm_ext("explain", "--run", "-f", "json", "--platform", "npu").code == 3


def test_a_program_may_ask_in_a_thread_of_its_own_where_no_signal_can_be_taken(vllm_ext):
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(vllm_ext, "explain", "platform", "-f", "json").result()

    assert (done.code, done.err) == (0, "")
    assert [row["state"] for row in done.out] == ["chosen"]


def test_what_plugins_registered_is_listed_without_a_run_too(vllm_ext, plugins):
    code = "from vllm_ext import ModelRegistry\ndef register(): ModelRegistry.register_model('Mine', 'acme:Mine')\n"
    plugins.distribution("acme", {"vllm.general_plugins": ["models = acme:register"]}, {"acme.py": code})

    done = vllm_ext("explain", "registries", "-f", "json", "--platform", "cpu")

    assert [(row["candidate"], row["state"], row["owner"]) for row in done.out] == [
        ("model architecture 'Mine'", "registered", "plugin 'models' of acme")
    ]


def test_a_replacement_that_is_not_taken_says_why(vllm_ext, plugins):
    plugins.project("vllm_ext_dummy_platform")
    code = """
        from vllm_ext.layers.layernorm import RMSNorm
        class Third(RMSNorm): ...
        def register(): RMSNorm.register_oot(Third)
    """
    plugins.distribution("third", {"vllm.general_plugins": ["t = third:register"]}, {"third.py": dedent(code)})

    for platform, why in {
        "cpu": "platform 'cpu' is an in-tree one, which keeps the in-tree ops",
        "dummy": "that of the platform's distribution comes first, or else the last one registered",
    }.items():
        done = vllm_ext("explain", "ops", "-f", "json", "--platform", platform)
        (row,) = [row for row in done.out if row["candidate"] == "third.Third"]
        assert (row["state"], row["owner"]) == ("passed_over", "plugin 't' of third")
        assert row["reason"] == f"registered for rms_norm, and {why}"
