"""What commands show: every value with its origin, and no secret."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from vllm_ext.config import Override, Settings, effective, json_schema, load_config, parse_set, redacted_settings
from vllm_ext.config import redaction as redaction_module
from vllm_ext.config.keys import Key, all_keys
from vllm_ext.config.redaction import is_secret, names_secret, secrets_in
from vllm_ext.errors import ConfigError

HIDDEN = "********"


def rows(*overrides: Override | str, redact: bool = True, **environ: str):
    parsed = [parse_set(item) if isinstance(item, str) else item for item in overrides]
    return {row.key: row for row in effective(load_config((), parsed, environ), redact=redact)}


class TestEffective:
    def test_there_is_a_row_for_every_key_in_the_order_of_the_schema(self):
        assert [key for key, _, _ in effective(load_config(environ={}))] == list(all_keys())

    def test_a_row_has_the_value_and_its_origin(self):
        key, value, origin = rows("engine.seed=5")["engine.seed"]

        assert (key, value, str(origin)) == ("engine.seed", 5, "command line (--set engine.seed=5)")
        assert str(rows()["engine.seed"].origin) == "default"

    def test_options_have_a_row_for_every_leaf_at_the_place_of_options(self):
        found = rows("options={npu: {batch: 4, x: {y: [1]}}, acme.npu: {}}", VLLM_EXT_OPTIONS='{"npu": {"z": null}}')

        assert [(key, row.value) for key, row in found.items() if key.startswith("options")] == [
            ("options.npu.z", None),
            ("options.npu.batch", 4),
            ("options.npu.x.y", [1]),
            ('options."acme.npu"', {}),
        ]
        assert str(found["options.npu.z"].origin) == "environment (VLLM_EXT_OPTIONS)"
        assert list(found).index("options.npu.z") == list(all_keys()).index("options")

    def test_no_options_are_one_row(self):
        assert (rows()["options"].value, str(rows()["options"].origin)) == ({}, "default")

    def test_values_are_plain(self):
        assert rows("platform.driver=[a, b]")["platform.driver"].value == ["a", "b"]


class TestSecrets:
    @pytest.mark.parametrize(
        "name",
        [
            "token", "hf_TOKEN", "authToken", "secretKey", "secret-key", "password", "Passwd", "passphrase",
            "pwd", "pass", "credentials", "api_key", "apikey", "api-key", "private_key", "access_key", "auth",
            "Authorization", "bearer", "secrets", "passwords", "api_keys", "hf_tokens", "authtoken", "accesstoken",
            "access_tokens", "dbpassword", "MYPASSWORD", "APITOKEN", "client_secrets", "signing_key", "encryption_keys",
            "privkey", "priv_key", "cookie", "cookies",
        ],
    )  # fmt: skip
    def test_an_option_whose_name_says_so_is_not_shown(self, name):
        key = f"options.npu.{name}"

        assert rows(f"{key}=hunter2")[key].value == HIDDEN
        assert rows(f"{key}=hunter2", redact=False)[key].value == "hunter2"

    @pytest.mark.parametrize(
        "name",
        [
            "batch", "key", "path", "passes", "max_tokens", "tokenizer", "author", "bypass", "tokens", "keys",
            "max_num_batched_tokens", "numTokens", "hf_tokenizer", "monkey",
        ],
    )  # fmt: skip
    def test_other_options_are_shown(self, name):
        assert rows(f"options.npu.{name}=x")[f"options.npu.{name}"].value == "x"

    def test_what_lies_below_such_a_name_is_not_shown(self):
        assert rows("options.npu.credentials={user: a, list: [b]}")["options.npu.credentials.user"].value == HIDDEN

    def test_a_plugin_may_be_called_what_it_likes(self):
        assert rows("options.token_counter.batch=4")["options.token_counter.batch"].value == 4

    def test_mappings_within_lists_are_looked_into(self):
        shown = rows("options.npu.servers=[{url: a, token: hunter2}, [{password: hunter2}]]")["options.npu.servers"]

        assert shown.value == [{"url": "a", "token": HIDDEN}, [{"password": HIDDEN}]]

    def test_the_key_of_the_server_is_redacted_and_taken_out_of_texts(self):
        config = load_config((), [parse_set("server.api_key=hunter2")], {})

        row = next(row for row in effective(config) if row.key == "server.api_key")

        assert (row.value, str(row.origin)) == (HIDDEN, "command line (--set server.api_key)")
        assert redacted_settings(config.settings)["server"]["api_key"] == HIDDEN
        assert secrets_in(config.settings) == ["hunter2"]
        assert Settings().server.api_key is None
        assert secrets_in(Settings()) == []

    def test_no_name_in_the_settings_of_our_own_says_so_unless_the_key_is_marked(self):
        names = {part for key in all_keys().values() if not key.secret for part in key.parts}

        assert [name for name in names if names_secret(name)] == []
        assert redacted_settings(Settings()) == msgspec.to_builtins(Settings())

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://user:hunter2@host/a@b", f"https://{HIDDEN}@host/a@b"),
            ("https://hunter2@host", f"https://{HIDDEN}@host"),
            ("redis://:hunt@er2@host:1", f"redis://{HIDDEN}@host:1"),
            ("via https://host/a and https://u:hunter2@b?c", f"via https://host/a and https://{HIDDEN}@b?c"),
        ],
    )
    def test_who_logs_in_with_a_url_is_not_shown(self, url, shown):
        found = rows(f"options.npu.url={url}", f"options.npu.urls=[{{x: '{url}'}}]")

        assert found["options.npu.url"].value == shown
        assert found["options.npu.urls"].value == [{"x": shown}]
        assert str(found["options.npu.url"].origin) == "command line (--set options.npu.url)"

    @pytest.mark.parametrize("url", ["https://host/a@b", "https://host?mail=a@b", "a@b", "http://host:80"])
    def test_a_url_without_a_login_is_shown(self, url):
        found = rows(f"options.npu.url={url}")["options.npu.url"]

        assert (found.value, str(found.origin)) == (url, f"command line (--set options.npu.url={url})")

    def test_a_secret_that_is_not_set_is_shown_as_null(self):
        assert rows("options.npu.token=null")["options.npu.token"].value is None

    def test_the_settings_as_a_whole_have_none(self):
        config = load_config((), [parse_set("options={npu: {token: hunter2, x: [{api_key: hunter2}], y: 1}}")], {})

        shown = redacted_settings(config.settings)

        assert shown["options"] == {"npu": {"token": HIDDEN, "x": [{"api_key": HIDDEN}], "y": 1}}
        assert shown["engine"]["executor"] == "uniproc"
        assert list(shown) == list(Settings.__struct_fields__)
        assert config.settings.options["npu"]["token"] == "hunter2"

    def test_a_key_that_the_schema_marks_is_not_shown(self, monkeypatch):
        marked = Key("engine.model", Annotated[str | None, Meta(extra={"secret": True})], None, "a secret")
        monkeypatch.setattr(redaction_module, "all_keys", lambda: {**all_keys(), "engine.model": marked})

        shown = rows("engine.model=hunter2")["engine.model"]

        assert is_secret(("engine", "model"))
        assert not is_secret(("engine", "seed"))
        assert (shown.value, str(shown.origin)) == (HIDDEN, "command line (--set engine.model)")


class TestSecretsInTexts:
    """The origin of a secret, and a mistake beside it, do not repeat it."""

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("options.npu.token=hunter2", "--set options.npu.token"),
            ("options.npu={token: hunter2}", "--set options.npu"),
            ("options={npu: {x: [{token: hunter2}]}}", "--set options"),
            ("options.npu.batch=4", "--set options.npu.batch=4"),
            ("engine.model=/models/token", "--set engine.model=/models/token"),
        ],
    )
    def test_the_option_is_named_without_the_value(self, text, where):
        assert parse_set(text).where == where

    def test_the_origin_of_an_override_made_by_hand_is_cut(self):
        override = Override("options.npu.token", "hunter2", "--set options.npu.token=hunter2")

        assert str(rows(override)["options.npu.token"].origin) == "command line (--set options.npu.token)"

    @pytest.mark.parametrize(
        "text",
        [
            "options.token=hunter2",
            "option.npu.token=hunter2",
            "options.npu.token=*hunter2",
            "options.npu.token={hunter2: hunter2, hunter2: 1}",
            "options.npu.token: hunter2",
        ],
    )
    def test_a_mistake_on_the_command_line_does_not_repeat_it(self, text):
        with pytest.raises(ConfigError) as caught:
            rows(text)

        assert "hunter2" not in str(caught.value)
        assert "--set" in str(caught.value)

    @pytest.mark.parametrize(
        "text", ['{"npu": {"token": "hunter2"}', '{"npu": {"token": hunter2}}', '{"token": "hunter2"}']
    )
    def test_a_mistake_in_the_variable_does_not_repeat_it(self, text):
        with pytest.raises(ConfigError) as caught:
            rows(VLLM_EXT_OPTIONS=text)

        assert "hunter2" not in str(caught.value)
        assert HIDDEN in str(caught.value)

    @pytest.mark.parametrize("text", ["options: {token: hunter2}", "options: {npu: {token: !!int hunter2}}"])
    def test_a_mistake_in_a_file_does_not_repeat_it(self, tmp_path, text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)

        with pytest.raises(ConfigError) as caught:
            load_config([path], environ={})

        assert str(caught.value).endswith(f"given {HIDDEN}")


class TestJsonSchema:
    """JSON Schema of a settings file."""

    @staticmethod
    def at(path: str):
        """What the schema says about a key."""
        schema = json_schema()
        node = schema
        for part in path.split("."):
            while "$ref" in node:
                node = schema["$defs"][node["$ref"].rpartition("/")[2]]
            node = node["properties"][part]
        return node

    def test_it_names_its_dialect_and_itself(self):
        assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert json_schema()["title"] == "Settings of vllm-ext"

    def test_every_key_has_its_meaning_and_its_default(self):
        for path, key in all_keys().items():
            assert (self.at(path)["description"], self.at(path)["default"]) == (key.description, key.default), path

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("host", {"enum": ["embedded", "vllm"]}),
            ("probe.timeout_s", {"type": "number", "exclusiveMinimum": 0}),
            ("engine.block_size", {"type": "integer", "minimum": 1}),
            ("engine.seed", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}),
            ("engine.model", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
            (
                "plugins.endpoint.enabled",
                {"anyOf": [{"enum": ["all"]}, {"type": "array", "items": {"type": "string"}}]},
            ),
        ],
    )
    def test_it_says_which_values_a_key_takes(self, path, said):
        assert {name: self.at(path)[name] for name in said} == said

    def test_no_section_takes_unknown_keys(self):
        sections = json_schema()["$defs"].values()

        assert all(section["additionalProperties"] is False for section in sections)

    def test_options_are_free_mappings_by_name(self):
        assert self.at("options")["additionalProperties"] == {"type": "object"}
