"""Fixtures for the tests of discovery."""

from __future__ import annotations

import pytest


@pytest.fixture
def site(tmp_path):
    """A folder for installed packages, as yet empty."""
    site = tmp_path / "site"
    site.mkdir()
    return site
