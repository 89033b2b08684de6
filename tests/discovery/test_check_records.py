"""What is odd about plugins taken together: records in, findings out."""

from __future__ import annotations

import pytest
from support.distributions import IN_TREE, PLATFORM, record

from vllm_ext.discovery import Finding
from vllm_ext.discovery.check_records import check_records


def codes(*records) -> list[str]:
    return [finding.code for finding in check_records(records)]


def test_different_plugins_are_no_finding():
    assert codes(*IN_TREE, record("a"), record("b"), record("a", "other", PLATFORM)) == []


def test_one_name_in_two_distributions():
    findings = list(check_records([record("a", "zeta", value="z:f"), record("a", "acme", value="a:f")]))

    assert findings == [
        Finding(
            severity="warning",
            code="ambiguous-name",
            subject="a",
            text="the general plugin 'a' is declared by acme 1.0 (/site/acme-1.0.dist-info) "
            "and zeta 1.0 (/site/zeta-1.0.dist-info)",
            remedy='Write "acme:a" or "zeta:a" in the settings.',
        )
    ]


def test_one_name_in_the_two_groups_of_a_kind():
    assert codes(*IN_TREE, record("cpu", "acme", PLATFORM)) == ["ambiguous-name"]


def test_one_name_in_unknown_groups_is_no_finding():
    assert codes(record("a", "acme", "vllm.x", value="a:f"), record("a", "zeta", "vllm.x", value="b:f")) == []


def test_one_target_under_two_names():
    (finding,) = check_records([record("b", value="m:f [x]"), record("a", value="m : f")])

    assert (finding.severity, finding.code, finding.subject) == ("warning", "repeated-target", "m:f")
    assert finding.text == (
        "'m:f' is the target of more than one name in vllm.general_plugins: "
        "'a' of acme 1.0 (/site/acme-1.0.dist-info) and 'b' of acme 1.0 (/site/acme-1.0.dist-info)"
    )
    assert finding.remedy == "Disable all but one of them in the settings, such as 'b'."


def test_one_target_in_two_groups_is_no_finding():
    assert codes(record("a", value="m:f"), record("b", group=PLATFORM, value="m:f")) == []


def test_one_name_with_two_targets_in_one_distribution():
    (finding,) = check_records([record("a", value="m:f"), record("a", value="m:g")])

    assert (finding.severity, finding.code, finding.subject) == ("warning", "name-with-two-targets", "a")
    assert finding.text.endswith("declares 'a' in vllm.general_plugins with the targets 'm:f' and 'm:g'")


@pytest.mark.parametrize("field", ["fault", "shadowed_by"])
def test_what_cannot_be_loaded_does_not_count(field):
    assert codes(record("a", "acme", value="m:f"), record("a", "zeta", value="m:f", **{field: "reason"})) == []


def test_the_order_of_the_records_does_not_matter():
    records = [record(name, name, value="m:f") for name in "abc"] + [record("a", "d"), record("b", "e")]

    assert list(check_records(records)) == list(check_records(reversed(records)))
