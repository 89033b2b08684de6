"""``vllm-ext run``: text on stdout, everything else on stderr."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.commands import run_without

from vllm_ext.cli.main import main
from vllm_ext.dispatch.hf_config import DEMO_MODEL

FAST = ["--max-tokens", "8", "--seed", "3"]


def run(capsys, *arguments):
    code = main(["run", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_prompt_is_continued_by_the_model_in_the_box(capsys):
    code, out, err = run(capsys, "It was a truth", *FAST)

    assert (code, err) == (0, "")
    assert out.startswith("It was a truth")
    assert len(out) > len("It was a truth") + 8


def test_json_has_the_requests_in_order_and_nothing_else(capsys):
    code, out, _ = run(capsys, "My dear", "The evening", "--json", *FAST)

    outputs = json.loads(out)
    assert code == 0
    assert [output["prompt"] for output in outputs] == ["My dear", "The evening"]
    assert [len(output["token_ids"]) for output in outputs] == [8, 8]
    assert {output["finish_reason"] for output in outputs} == {"length"}


def test_streamed_text_is_that_of_the_json(capsys):
    _, as_json, _ = run(capsys, "My dear", "The evening", "--json", *FAST)
    _, streamed, _ = run(capsys, "My dear", "The evening", *FAST)

    assert streamed == "\n\n".join(output["prompt"] + output["text"] for output in json.loads(as_json)) + "\n"


def test_with_chat_each_prompt_is_a_users_message_and_the_answers_are_printed(capsys, tmp_path):
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    arguments = ["Hello", "Who is it?", "--chat", "--model", str(tmp_path / "model"), "--temperature", "0"]

    _, out, _ = run(capsys, *arguments, "--max-tokens", "5", "--json")
    _, text, _ = run(capsys, *arguments, "--max-tokens", "5")

    answers = json.loads(out)
    assert [answer["prompt"] for answer in answers] == ["user: Hello\nassistant:", "user: Who is it?\nassistant:"]
    assert text == "\n\n".join(answer["text"] for answer in answers) + "\n"


def test_the_same_seed_gives_the_same_text(capsys):
    assert run(capsys, *FAST)[1] == run(capsys, *FAST)[1]


@pytest.mark.parametrize("limit", [["--top-k", "1"], ["--top-p", "1e-6"], ["--min-p", "1"]], ids=lambda v: v[0])
def test_a_limit_on_the_choice_of_tokens_is_followed(capsys, limit):
    _, greedy, _ = run(capsys, "My dear", "--temperature", "0", "--max-tokens", "8")

    assert run(capsys, "My dear", *limit, *FAST) == (0, greedy, "")


def test_the_text_ends_before_the_first_of_the_stop_strings(capsys):
    _, whole, _ = run(capsys, "My dear", "--temperature", "0", "--max-tokens", "20")
    stop = whole[15:18]

    _, out, _ = run(capsys, "My dear", "--temperature", "0", "--max-tokens", "20", "--stop", "@", "--stop", stop)

    assert out == whole[: whole.index(stop, len("My dear"))] + "\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temperature", "-1"], "temperature is -1.0; it takes a number, from 0.0 to 1e+30"),
        (["--top-p", "0"], "top_p is 0.0; it takes a number, above 0.0 and at most 1.0"),
        (["--stop", ""], "stop holds an empty string; every entry needs at least one character"),
        (["--max-tokens", "0"], "max_tokens is 0; it takes an integer, at least 1"),
        (["--dtype", "int4"], "engine.dtype: expected one of auto, float32, bfloat16, float16, given 'int4'"),
        (["--chat", "--task", "embed"], "command line (--chat): --task embed makes no answer to a message"),
        (["--chat", "--set", "engine.runner=pooling"], "(--chat): a model that pools makes no answer to a message"),
        (["--chat"], "has no chat template, neither in chat_template.jinja nor"),
        (["--model", "/nowhere"], "model directory '/nowhere' does not exist"),
        (["--model", "~no-such-user/model"], "model directory '~no-such-user/model' does not exist"),
    ],
)
def test_bad_input_is_exit_2_with_one_message_and_no_traceback(arguments, message, capsys):
    code, out, err = run(capsys, *arguments)

    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_worker_that_looks_for_one_more_of_nothing_is_named_on_stderr(capsys):
    code, out, err = run(capsys, "It was", "--set", "worker.cls=support.faulty_workers.FindsNoWeights")

    assert (code, out) == (1, "")
    assert "worker support.faulty_workers.FindsNoWeights of platform 'cpu' failed to start: StopIteration" in err


def test_bad_options_are_refused_before_torch_is_imported():
    done = run_without(["run", "--set", "engine.blok_size=3"])

    assert done.returncode == 2
    assert "(did you mean 'block_size'?)" in done.stderr


def test_what_a_plugin_writes_by_itself_is_no_part_of_the_result(plugins):
    code = "import os\ndef run(): os.system('echo from a process'); os.write(1, b'from the system')"
    plugins.distribution("loud", {"vllm.general_plugins": ["l = loud:run"]}, {"loud.py": code})

    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", "run", "--json", "--max-tokens", "2"],
        env={**os.environ, "PYTHONPATH": str(plugins.site)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(json.loads(done.stdout)) == 1
    assert "from a process" in done.stderr
    assert "from the system" in done.stderr


@pytest.mark.parametrize(("is_ignored", "code"), [(True, 0), (False, 129)], ids=["nohup", "terminal"])
def test_a_terminal_that_is_closed_ends_it_unless_it_was_told_to_go_on(plugins, is_ignored, code):
    source = "import os, signal\ndef run():\n    os.kill(os.getpid(), signal.SIGHUP)\n"
    plugins.distribution("closing", {"vllm.general_plugins": ["c = closing:run"]}, {"closing.py": source})
    program = (
        f"import signal, sys; signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if is_ignored else 'SIG_DFL'}); "
        f"from vllm_ext.cli.main import main; sys.exit(main(['run', *{FAST!r}]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(plugins.site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code
    assert bool(done.stdout) == is_ignored


@pytest.mark.parametrize("command", ["run", "explain"])
@pytest.mark.parametrize("group", ["vllm.platform_plugins", "vllm.general_plugins"])
def test_a_termination_while_a_plugin_runs_is_not_taken_for_the_plugins_failure(plugins, command, group):
    code = "import os, signal\ndef run():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    plugins.distribution("slow", {group: ["s = slow:run"]}, {"slow.py": code})

    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", command, *(FAST if command == "run" else [])],
        env={**os.environ, "PYTHONPATH": str(plugins.site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (143, "")
    assert "plugin 's' of slow 0.1 was called (slow:run)" in done.stderr
