"""``vllm-ext run --io-processor NAME --data FILE``: data in, the processor's answer out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.io_processors import install, install_marked, model_that_names

ECHO = "    def parse_data(self, data): return data\n    def pre_process(self, prompt, request_id=None):\n"
ECHO += "        self.kept[request_id] = prompt\n        return 'She had'\n"


def answering(expression: str) -> str:
    """A processor whose answer is an expression of ``data`` and of the model's ``outputs``."""
    return ECHO + (
        "    def post_process(self, outputs, request_id=None):\n"
        f"        data = self.kept.pop(request_id)\n        return {expression}\n"
    )


@pytest.fixture
def run(vllm_ext, tmp_path):
    """Run the processor ``split`` on a file with ``content``."""

    def run(content: bytes | str, *options: str, name: str = "data.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return vllm_ext("run", "--io-processor", "split", "--data", path, *options)

    return run


class TestAnswers:
    def test_a_text_is_written_as_it_is(self, plugins, run):
        install(plugins, body=answering("data.upper()"))

        assert run("Größe\nof it") == (0, "GRÖSSE\nOF IT", "")

    def test_bytes_are_written_as_they_are(self, plugins):
        install(plugins, body=answering("bytes(reversed(data))"))

        done = subprocess.run(
            [sys.executable, "-m", "vllm_ext.cli.main", "run", "--io-processor", "split", "--data", "-"],
            input=b"\xff\x00ab",
            capture_output=True,
            check=False,
            env={"PYTHONPATH": str(plugins.site), "PATH": ""},
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, b"ba\x00\xff", b"")

    def test_anything_else_is_a_line_of_json(self, plugins, run):
        install(plugins, body=answering("{'given': data, 'vector': __import__('torch').ones(2), 'pair': (1, None)}"))

        code, out, err = run("x")

        assert (code, err, out.count("\n")) == (0, "", 1)
        assert json.loads(out) == {"given": "x", "vector": [1.0, 1.0], "pair": [1, None]}

    @pytest.mark.parametrize(
        "content, name, seen",
        [
            ("a|b", "data.txt", "str 'a|b'"),
            (b"\xff\xfe", "data.bin", r"bytes b'\xff\xfe'"),
            ('{"rows": [1]}', "data.json", "dict {'rows': [1]}"),
            ("null", "data.json", "NoneType None"),
        ],
    )
    def test_the_processor_gets_text_bytes_or_what_a_json_file_holds(self, plugins, run, content, name, seen):
        install(plugins, body=answering("f'{type(data).__name__} {data!r}'"))

        assert run(content, name=name) == (0, seen, "")

    def test_stdin_is_read_with_a_dash(self, plugins, vllm_ext, monkeypatch, tmp_path):
        install(plugins, body=answering("data.upper()"))
        (tmp_path / "input").write_text("from stdin")

        with (tmp_path / "input").open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            done = vllm_ext("run", "--io-processor", "split", "--data", "-")

        assert done == (0, "FROM STDIN", "")

    def test_options_for_sampling_reach_the_processor(self, plugins, run):
        body = "    def merge_sampling_params(self, params=None):\n"
        body += "        params.ignore_eos = True\n        return params\n"
        install(plugins, body=body + answering("len(outputs[0].outputs[0].token_ids)"))

        assert run("x", "--max-tokens", "7") == (0, "7\n", "")

    def test_what_the_processor_prints_is_no_result(self, plugins, run):
        install(plugins, body=answering("print('working') or 'done'"))

        assert run("x") == (0, "done", "working\n")


class TestChoice:
    def test_what_it_took_is_said_where_that_is_asked_for(self, plugins, run):
        install(plugins, body=answering("data"))

        code, out, err = run("x", "--stats", "--max-tokens", "3", "--temperature", "0")

        assert (code, out) == (0, "x")
        assert "requests             1 (length 1)" in err

    def test_the_settings_may_name_the_processor(self, plugins, vllm_ext, tmp_path):
        install(plugins, body=answering("'done'"))
        (tmp_path / "data").write_text("x")

        done = vllm_ext("run", "--data", tmp_path / "data", "--set", "plugins.io_processor.use=split")

        assert done == (0, "done", "")

    def test_a_missing_one_lists_what_exists(self, plugins, vllm_ext, tmp_path):
        install(plugins)
        (tmp_path / "data").write_text("x")

        code, out, err = vllm_ext("run", "--io-processor", "splitt", "--data", tmp_path / "data")

        assert (code, out) == (2, "")
        assert "names (did you mean 'split'?); installed: split" in err
        assert "(--io-processor)" in err

    def test_data_without_a_processor_is_refused_before_the_model_is_loaded(
        self, plugins, vllm_ext, tmp_path, monkeypatch
    ):
        install(plugins)
        (tmp_path / "data").write_text("x")
        monkeypatch.setattr("vllm_ext.engine.llm.LLM.from_dispatcher", None)

        code, out, err = vllm_ext("run", "--data", tmp_path / "data")

        assert (code, out) == (2, "")
        assert (
            "--data takes an IO processor: none is chosen. Name one with --io-processor, LLM(io_processor_plugin=...) "
            "or plugins.io_processor.use; installed: split"
        ) in err

    def test_a_model_that_names_one_that_is_not_enabled_runs_no_code_of_it(self, plugins, vllm_ext, tmp_path):
        install_marked(plugins, "split", tmp_path / "ran")
        model = model_that_names("split", tmp_path)
        (tmp_path / "data").write_text("x")

        code, out, err = vllm_ext("run", "--model", model, "--data", tmp_path / "data")

        assert (code, out) == (2, "")
        assert "set plugins.io_processor.enabled=[split]" in err
        assert not (tmp_path / "ran").exists()


class TestFaults:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--io-processor", "split"], "command line (--io-processor): it works on data; name a file with --data"),
            (
                ["--data", "FILE", "She had"],
                "(--data): the IO processor makes prompts and answer, so prompts do not go",
            ),
            (["--data", "FILE", "--json"], "(--data): the IO processor makes prompts and answer, so --json do not go"),
            (["--data", "FILE", "--chat"], "(--data): the IO processor makes prompts and answer, so --chat do not go"),
            (
                ["--data", "FILE", "--truncate-prompt-tokens", "5"],
                "(--data): the IO processor makes prompts and answer, so --truncate-prompt-tokens do not go",
            ),
            (["--data", "/nowhere/x"], "(--data): '/nowhere/x' cannot be read: [Errno 2] No such file"),
            (["--data", "JSON"], "broken.json' cannot be read: Expecting"),
            (["--data", ""], "(--data): expected a file, or - for stdin, given an empty name"),
        ],
    )
    def test_wrong_use_is_exit_2(self, plugins, vllm_ext, tmp_path, arguments, message):
        install(plugins)
        files = {"FILE": tmp_path / "data", "JSON": tmp_path / "broken.json"}
        for path in files.values():
            path.write_text("[1,")

        code, out, err = vllm_ext("run", *(files.get(argument, argument) for argument in arguments))

        assert (code, out) == (2, "")
        assert message in err

    def test_json_that_is_nested_too_deeply_says_so(self, run):
        code, out, err = run("[" * 100_000, name="deep.json")

        assert (code, out) == (2, "")
        assert "deep.json' cannot be read: it is nested too deeply" in err

    def test_a_standard_input_that_is_closed_says_so(self):
        line = f"{sys.executable} -m vllm_ext run --data - <&-"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "ERROR: command line (--data -): standard input is closed\n"

    def test_options_that_choose_tokens_are_refused_of_a_model_that_pools(self, plugins, run):
        install(plugins, body=answering("data"))

        assert run("x", "--seed", "1").code == 0
        code, out, err = run("x", "--seed", "1", "--task", "embed")

        assert (code, out) == (2, "")
        assert "command line (--seed): a model that pools generates no tokens to choose" in err

    def test_a_processor_that_refuses_the_data_is_exit_2(self, plugins, run):
        install(plugins, body="    def parse_data(self, data): raise ValueError('colours are missing')\n")

        code, out, err = run("x")

        assert (code, out) == (2, "")
        assert "io processor plugin 'split' of dist-split 0.1 refuses the request: colours are missing" in err

    def test_a_processor_that_fails_is_exit_1_with_its_own_traceback(self, plugins, run):
        install(plugins, body=answering("data.colour"))

        code, out, err = run("x")

        assert (code, out) == (1, "")
        assert "failed in post_process(): AttributeError: 'str' object has no attribute 'colour'" in err
        assert "split_io_module.py" in err

    def test_an_answer_that_json_has_nothing_for_says_so(self, plugins, run):
        install(plugins, body=answering("{'answer': object()}"))

        code, out, err = run("x")

        assert (code, out) == (1, "")
        assert (
            "answer cannot be written as JSON: NotImplementedError: no form for builtins.object; on the command" in err
        )
