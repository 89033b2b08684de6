"""A plugin's test fails where the plugin would."""

from __future__ import annotations

import pytest

from vllm_ext.errors import PluginNotFound
from vllm_ext.testing import assert_loads

GENERAL = "vllm.general_plugins"


@pytest.fixture
def acme(plugin_site):
    code = "def good(): ...\ndef bad(): print('hello'); raise OSError('no licence')\n"
    plugin_site.distribution("acme", {GENERAL: ["good = acme:good", "bad = acme:bad"]}, {"acme.py": code})


def test_one_that_works_passes(acme):
    assert_loads("good", group=GENERAL)


def test_one_that_fails_is_told_with_its_traceback_and_output(acme):
    with pytest.raises(AssertionError, match="'bad' of acme 0.1 is failed: OSError: no licence\n") as caught:
        assert_loads("bad")

    assert 'acme.py", line 2, in bad' in str(caught.value)
    assert str(caught.value).endswith("hello")


def test_one_that_settings_keep_out_is_not_loaded(acme):
    with pytest.raises(AssertionError, match="'good' of acme 0.1 is not loaded, since it is disabled: "):
        assert_loads("good", overrides={"plugins.general.disabled": ["good"]})


def test_one_that_is_not_installed_is_not_found(acme):
    with pytest.raises(PluginNotFound, match=r"no plugin 'goood' is installed \(did you mean 'good'\?\)"):
        assert_loads("goood")
