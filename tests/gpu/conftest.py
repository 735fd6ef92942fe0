"""What is here needs a card; elsewhere it is skipped, and says so."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use: torch.cuda.is_available() is False")
