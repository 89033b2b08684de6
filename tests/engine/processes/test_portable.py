"""Values that pass between processes: what arrives, and what is refused."""

from __future__ import annotations

import re
import signal

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.faulty_workers import FrozenReport, NeedsMore, Report

from vllm_ext.engine.processes.portable import NotPortable, decode, encode

KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
VALUES = st.recursive(
    KEYS | st.floats(allow_nan=False) | st.frozensets(st.integers()) | st.sets(st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def same(a: object, b: object) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, dict):
        return all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return not isinstance(a, list | tuple) or all(same(x, y) for x, y in zip(a, b, strict=True))


@given(VALUES)
def test_plain_data_comes_back_equal_and_of_the_same_types(value):
    assert same(value, decode(encode(value)))


@pytest.mark.parametrize("value", [object(), lambda: None, iter([]), [1, {"a": object()}]])
def test_what_has_no_form_of_its_own_is_refused(value):
    with pytest.raises(NotPortable):
        encode(value)


def test_a_function_in_place_of_a_class_is_not_called(tmp_path):
    made = tmp_path / "made"
    data = msgspec.msgpack.encode({"~": "object", "class": "os:mkdir", "v": {"path": str(made)}})

    with pytest.raises(NotPortable, match=r"'os:mkdir' .*neither a dataclass"):
        decode(data)
    assert not made.exists()


@pytest.mark.parametrize("value", [re.I, re.I | re.M, re.RegexFlag(0), signal.SIGINT, torch.float16])
def test_members_and_flags_come_back_the_same(value):
    assert decode(encode(value)) == value
    assert type(decode(encode(value))) is type(value)


@pytest.mark.parametrize(
    "value",
    ["\ud800", torch.empty(2, device="meta"), torch.eye(2).to_sparse()],
    ids=["no Unicode", "no data", "sparse"],
)
def test_what_cannot_be_written_is_refused(value):
    with pytest.raises(NotPortable, match="a value cannot pass to another process"):
        encode([value])


def test_a_dataclass_arrives_as_it_was_and_is_not_made_anew():
    report = Report(3)
    report.losses.append(1.5)

    arrived = decode(encode(report))

    assert (arrived, type(arrived), arrived.note) == (report, Report, "rank 6")


@pytest.mark.parametrize("mean", [None, 0.5])
def test_fields_that_are_not_set_stay_so(mean):
    report = FrozenReport(3)
    if mean is not None:
        object.__setattr__(report, "mean", mean)

    arrived = decode(encode(report))

    assert (arrived.rank, getattr(arrived, "mean", None)) == (3, mean)


def test_what_its_class_does_not_take_back_is_refused():
    with pytest.raises(NotPortable, match=r"that it cannot make: TypeError: .*missing 1 required"):
        decode(encode(NeedsMore(1, 2)))


@pytest.mark.parametrize("data", [b"", b"\xc1", encode([1, 2])[:-1], encode({"~": 3})[:-1]])
def test_a_damaged_message_is_refused(data):
    with pytest.raises(NotPortable, match="that it cannot make"):
        decode(data)


def test_a_function_in_place_of_an_enumeration_is_not_called(tmp_path):
    made = tmp_path / "made"
    data = msgspec.msgpack.encode({"~": "enum", "class": "os:mkdir", "v": str(made)})

    with pytest.raises(NotPortable, match=r"'os:mkdir' .*no enumeration"):
        decode(data)
    assert not made.exists()
