"""What tests of the command share."""

import pytest

from narrowcast.cli.common import console


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell wraps, whatever COLUMNS says."""
    monkeypatch.setattr(console, "width", 200)
