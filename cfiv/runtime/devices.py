"""Where tensors live while networks train."""

from __future__ import annotations

import torch

from cfiv.checks import check_instance
from cfiv.errors import ParameterError


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is cuda where there is one, else cpu.

    Raises
    ------
    ParameterError
        If the device is unknown or absent.
    """
    check_instance("device", device, (str, torch.device), "'auto' or the name of a device, such as 'cpu'")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=resolved).item()  # "meta" has tensors without values
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ParameterError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): use 'auto' or 'cpu'"
        ) from None
    return resolved
