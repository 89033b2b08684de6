"""Which platform an engine gets when several plugins are installed, as its user meets it."""

from __future__ import annotations

import pytest

from vllm_ext import LLM
from vllm_ext.errors import AmbiguousPlugin, PlatformUnavailable, PluginLoadError

DECLINES = "from vllm_ext import Unavailable\ndef register():\n    raise Unavailable('no dummy card in any slot')\n"
FAILS = "def register():\n    import a_driver_that_is_not_installed\n"
SECOND = "def register():\n    return 'vllm_ext_dummy_platform.my_dummy_platform.MyDummyPlatform'\n"


@pytest.fixture
def install(plugins):
    """Installs a distribution with one platform plugin, next to the dummy platform."""
    plugins.project("vllm_ext_dummy_platform")

    def install(name: str, source: str) -> None:
        entry_points = {"vllm.platform_plugins": [f"{name} = {name}_module:register"]}
        plugins.distribution(f"dist_{name}", entry_points, {f"{name}_module.py": source})

    return install


def chosen(model, **settings) -> str:
    with LLM(model=model, dtype="float32", **settings) as llm:
        return type(llm.dispatcher.platform).__name__


def test_an_installed_platform_is_preferred_to_the_in_tree_one(install, random_llama):
    assert chosen(random_llama) == "MyDummyPlatform"
    assert chosen(random_llama, platform="cpu") == "CpuPlatform"


def test_one_that_declines_leaves_the_choice_to_the_others(install, random_llama):
    install("absent", DECLINES)

    assert chosen(random_llama) == "MyDummyPlatform"
    assert chosen(random_llama, platform=["absent", "dummy"]) == "MyDummyPlatform"


def test_one_that_declines_although_named_ends_the_start_with_its_reason(install, random_llama):
    install("absent", DECLINES)

    with pytest.raises(PlatformUnavailable, match="no dummy card in any slot"):
        chosen(random_llama, platform="absent")


def test_one_that_fails_is_warned_about_and_passed_over(install, random_llama, caplog):
    install("broken", FAILS)

    assert chosen(random_llama) == "MyDummyPlatform"
    assert "broken" in caplog.text
    assert "a_driver_that_is_not_installed" in caplog.text


def test_one_that_fails_although_named_ends_the_start_with_its_cause(install, random_llama):
    install("broken", FAILS)

    with pytest.raises((PlatformUnavailable, PluginLoadError), match="a_driver_that_is_not_installed") as caught:
        chosen(random_llama, platform="broken")

    causes = []
    error = caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(isinstance(cause, ModuleNotFoundError) for cause in causes), "the plugin's own traceback is kept"


def test_two_active_ones_are_an_error_that_says_how_to_choose(install, random_llama):
    install("second", SECOND)

    with pytest.raises(AmbiguousPlugin) as caught:
        chosen(random_llama)

    assert "dummy" in str(caught.value)
    assert "second" in str(caught.value)
    assert "driver:" in str(caught.value)
    assert chosen(random_llama, platform="second") == "MyDummyPlatform"
