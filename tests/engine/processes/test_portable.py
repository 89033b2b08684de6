"""Values that pass between processes: what arrives, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
