"""Key paths as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ext.config.paths import join_path, split_assignment, split_path


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        (("engine", "seed"), "engine.seed"),
        (("options", "acme:npu", "batch"), "options.acme:npu.batch"),
        (("options", "acme.npu", "batch"), 'options."acme.npu".batch'),
        (("options", "npu", ""), 'options.npu.""'),
        (("options", 'a".b', "c=d"), r'options."a\".b"."c=d"'),
    ],
)
def test_only_parts_that_a_dot_would_split_are_quoted(parts, path):
    assert (join_path(parts), split_path(path)) == (path, parts)


@given(st.lists(st.text(alphabet='ab.":=\\ \n', max_size=5), min_size=1, max_size=4).map(tuple))
def test_the_parts_come_back_from_the_text(parts):
    assert split_path(join_path(parts)) == parts
    assert split_assignment(f"{join_path(parts)}=a=b") == (join_path(parts), "a=b")


@given(st.text(alphabet='a."\\', max_size=12))
def test_any_text_is_a_path(text):
    assert all(isinstance(part, str) for part in split_path(text))


@pytest.mark.parametrize("text", ["", "a", "=1", " =1", '"a=1'])
def test_an_assignment_has_a_key_and_an_equals_sign(text):
    assert split_assignment(text) is None
