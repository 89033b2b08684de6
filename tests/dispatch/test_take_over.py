"""A process that joins an engine applies exactly its plan; what would be different is printed side by side."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from support.device import make_dispatcher
from support.hook_platform import install_platform
from support.processes import nothing_left

from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.take_over import make_hand_over, take_over
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import PlanMismatch
from vllm_ext.managers import make_receipt
from vllm_ext.plan import HandOver

GENERAL = "vllm.general_plugins"
SOURCE = "import os\ndef run():\n    pass\ndef other():\n    pass\n"


@pytest.fixture(autouse=True)
def _no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with nothing_left(monkeypatch):
        yield


@pytest.fixture
def start(plugins, random_llama) -> Callable[..., Dispatcher]:
    """Binds the plan of an engine of one worker process, with a general plugin ``acme:a``; starts nothing."""

    def start(source: str = SOURCE) -> Dispatcher:
        plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {"acme.py": source})
        settings = {
            "engine.model": str(random_llama),
            "engine.executor": "multiproc",
            "engine.kv_cache_memory": 1 << 20,
            "platform.driver": ["cpu"],
            "options": {"a": {"level": 3}},
        }
        config = load_config(overrides=[Override(key, value, "test") for key, value in settings.items()])
        return bootstrap(config).dispatcher()

    return start


def refusal(dispatcher: Dispatcher) -> str:
    """What an engine says whose worker finds something else than its plan."""
    with pytest.raises(PlanMismatch) as caught:
        LLM.from_dispatcher(dispatcher)
    return str(caught.value)


def table(text: str) -> list[list[str]]:
    """The cells of the lines that are indented."""
    return [re.split(r"  +", line.strip()) for line in text.splitlines() if line.startswith("  ")]


def test_a_worker_applies_the_plan_and_has_the_same_fingerprint(start):
    with LLM.from_dispatcher(start()) as llm:
        here, worker = llm.receipts

    assert worker.fingerprint == here.fingerprint
    assert worker.active == here.active == ("vllm_ext.platforms: vllm-ext:cpu", "vllm.general_plugins: acme:a")


class TestAnotherInstallationThanTheEngines:
    """The distribution is changed between the engine's plan and the worker's start."""

    def test_another_version_of_a_plugin(self, start, plugins):
        dispatcher = start()
        reinstall(plugins.site, version="0.2")

        text = refusal(dispatcher)

        assert "worker 0 would not run what the engine runs" in text
        assert table(text) == [
            ["engine", "worker 0"],
            ["vllm.general_plugins: acme:a", "version 0.1", "version 0.2"],
        ]
        assert "install the same versions for both" in text

    @pytest.mark.slow
    def test_a_plugin_that_is_missing(self, start, plugins):
        dispatcher = start()
        shutil.rmtree(plugins.site / "acme-0.1.dist-info")

        assert table(refusal(dispatcher))[1] == ["vllm.general_plugins: acme:a", "version 0.1", "not installed"]

    @pytest.mark.slow
    def test_another_target_of_the_same_version(self, start, plugins):
        dispatcher = start()
        reinstall(plugins.site, target="acme:other")

        assert table(refusal(dispatcher))[1] == ["vllm.general_plugins: acme:a", "acme:run", "acme:other"]

    def test_no_plugin_is_imported_where_something_is_different(self, start, plugins, tmp_path):
        dispatcher = start(
            f"import os\nwith open({str(tmp_path / 'pids')!r}, 'a') as f: f.write(f'{{os.getpid()}} ')\n" + SOURCE
        )
        reinstall(plugins.site, version="0.2")
        refusal(dispatcher)

        assert (tmp_path / "pids").read_text().split() == [str(os.getpid())]


def reinstall(site: Path, version: str = "0.1", target: str = "acme:run") -> None:
    shutil.rmtree(site / "acme-0.1.dist-info")
    dist_info = site / f"acme-{version}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme\nVersion: {version}\n")
    (dist_info / "entry_points.txt").write_text(f"[{GENERAL}]\na = {target}\n")


def test_a_plugin_that_fails_in_the_worker_only_is_named_with_its_traceback(start):
    source = "import os\ndef run():\n    if 'LOCAL_RANK' in os.environ: raise ZeroDivisionError('only here')\n"
    dispatcher = start(source)
    with pytest.raises(PlanMismatch) as caught:
        LLM.from_dispatcher(dispatcher)

    assert table(str(caught.value))[:2] == [
        ["engine", "worker 0"],
        ["vllm.general_plugins: acme:a", "active", "not active"],
    ]
    assert "vllm.general_plugins: acme:a: ZeroDivisionError: only here" in str(caught.value)
    assert 'acme.py", line 3, in run' in caught.value.remote_traceback


class TestAnotherEngineThanThisProcess:
    """The plan comes from a process where something else runs: its identity says so."""

    @pytest.fixture
    def handed(self, start) -> HandOver:
        return make_hand_over(start())

    def difference(self, handed: HandOver, change: Callable[[dict], None]) -> list[list[str]]:
        identity = json.loads(json.dumps(handed.identity))
        change(identity)
        with pytest.raises(PlanMismatch) as caught:
            take_over(msgspec.structs.replace(handed, identity=identity), "worker", 1)
        return table(str(caught.value))

    @pytest.mark.parametrize("name", ["torch", "python", "vllm_ext"])
    def test_another_version_of_what_runs(self, handed, name):
        own = handed.identity["versions"][name]

        found = self.difference(handed, lambda identity: identity["versions"].update({name: "1.0.9"}))

        assert found == [["engine", "worker 1"], [name, "1.0.9", own]]

    def test_other_options_are_shown_as_a_hash_since_they_may_be_secret(self, handed):
        def change(identity: dict) -> None:
            (plugin,) = [plugin for plugin in identity["plugins"] if plugin[0] == "acme"]
            plugin[-1] = "0123456789abcdef"

        _, row = self.difference(handed, change)

        assert row[:2] == ["vllm.general_plugins: acme:a", "options (hash 0123456789ab)"]
        assert re.fullmatch(r"options \(hash [0-9a-f]{12}\)", row[2])

    def test_another_override_of_a_slot(self, handed):
        slot = next(iter(handed.identity["overrides"]))

        found = self.difference(handed, lambda identity: identity["overrides"].update({slot: "elsewhere.Thing"}))

        assert found[1][:2] == [f"setting {slot}", "'elsewhere.Thing'"]

    def test_all_differences_are_shown_at_once(self, handed):
        found = self.difference(handed, lambda identity: identity["versions"].update(torch="1.0", python="2.7"))

        assert {row[0] for row in found[1:]} == {"torch", "python"}

    def test_what_passes_over_is_plain_data_and_comes_back_the_same(self, handed):
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(handed), type=HandOver)

        assert again.bound_plan().fingerprint == handed.fingerprint
        assert again.config(again.bound_plan()).settings == handed.bound_plan().plan.settings


def test_a_forked_child_has_a_receipt_of_its_own_that_names_its_parent(start):
    bound_plan = start().bound_plan
    parent = make_receipt(bound_plan, "front end")
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, msgspec.json.encode(make_receipt(bound_plan, "front end")))
        os._exit(0)
    os.waitpid(pid, 0)
    child = json.loads(os.read(read, 1 << 16))

    assert (child["pid"], child["forked_from"]) == (pid, os.getpid())
    assert (parent.pid, parent.forked_from) == (os.getpid(), None)
    assert (child["fingerprint"], tuple(child["active"])) == (parent.fingerprint, parent.active)


class TestHooksOfThePlatform:
    """They run in every process, and have to come to the engine's configuration in each."""

    @pytest.fixture
    def start_npu(self, plugins, random_llama) -> Callable[[str], Dispatcher]:
        """A dispatcher on the platform ``npu`` with such a hook, for an engine of one worker process."""

        def start_npu(hook: str) -> Dispatcher:
            install_platform(plugins, hook)
            settings = {"engine__executor": "multiproc", "engine__kv_cache_memory": 1 << 20}
            return make_dispatcher(random_llama, platform__driver="npu", **settings)

        return start_npu

    def test_a_seed_that_is_drawn_in_each_process_is_refused_with_both_values(self, start_npu):
        dispatcher = start_npu(
            "import random\nif vllm_config.model_config.seed == 0:\n"
            "    vllm_config.model_config.seed = random.randrange(1, 2**31)"
        )

        text = refusal(dispatcher)

        assert text.startswith("worker 0 would not run what the engine runs:")
        heading, (path, engine, worker) = table(text)
        assert (heading, path) == (["engine", "worker 0"], "model_config.seed")
        assert int(engine) == dispatcher.vllm_config.model_config.seed != int(worker)
        assert "Every process runs the hooks of platform 'npu' again, and they have to come to the same" in text

    @pytest.mark.parametrize(
        ("condition", "row"),
        [
            ("'LOCAL_RANK' in os.environ", ["scheduler_config.max_num_seqs", "64", "4"]),
            pytest.param(
                "'LOCAL_RANK' not in os.environ",
                ["scheduler_config.max_num_seqs", "4", "64"],
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_a_limit_that_is_set_in_some_processes_only_is_refused(self, start_npu, condition, row):
        dispatcher = start_npu(f"if {condition}:\n    vllm_config.scheduler_config.max_num_seqs = 4")

        assert table(refusal(dispatcher))[1:] == [row]

    def test_what_it_adds_for_itself_is_shown_as_a_hash_since_it_may_be_secret(self, start_npu):
        dispatcher = start_npu("vllm_config.additional_config['npu'] = {'pid': os.getpid()}")

        (_, (path, engine, worker)) = table(refusal(dispatcher))

        assert path == "additional_config['npu']"
        assert all(re.fullmatch(r"\(hash [0-9a-f]{12}\)", text) for text in (engine, worker))

    @pytest.mark.slow
    def test_memory_and_rank_may_be_of_each_process_and_objects_are_no_difference(self, start_npu):
        dispatcher = start_npu(
            "vllm_config.cache_config.kv_cache_memory_bytes = (1 << 20) + os.getpid()\n"
            "vllm_config.parallel_config.rank = int(os.environ.get('LOCAL_RANK', 7))\n"
            "vllm_config.parallel_config.worker_cls = 'acme_npu.NpuWorker'\n"
            "vllm_config.parallel_config.local_rank = os.environ.get('LOCAL_RANK')\n"
            "vllm_config.additional_config['npu'] = {'made': [object(), NpuWorker, {'a', 'b', 'c'}]}"
        )

        with LLM.from_dispatcher(dispatcher) as llm:
            assert [receipt.name for receipt in llm.receipts] == ["front end", "worker 0"]
