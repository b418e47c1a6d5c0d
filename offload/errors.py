"""The exception tree: everything a user can cause, and nothing else.

    OffloadError            exit code 1 in the CLI: one line, no traceback
    +-- GGUFError           the file is broken, truncated or not a GGUF
    +-- UnsupportedError    a sound file that this version cannot run (architecture, type, option)
    +-- PlanError           it does not fit: memory, context length
    +-- HubError            a model cannot be found on the hub, or not be downloaded
    +-- DeviceError         a device is missing or failed
    +-- RequestError        a bad prompt, message list or sampling value

Every message says what is wrong, with the numbers, and the way out.
"""

from __future__ import annotations


class OffloadError(Exception):
    """Base of every error that a user can cause."""


class GGUFError(OffloadError):
    """The file is broken, truncated or not a GGUF."""


class UnsupportedError(OffloadError):
    """A sound file that this version cannot run."""


class PlanError(OffloadError):
    """The model or the context does not fit the machine."""


class HubError(OffloadError):
    """A model cannot be found on the hub, or its files cannot be downloaded."""


class DeviceError(OffloadError):
    """A device is missing or failed."""


class RequestError(OffloadError):
    """A bad prompt, message list or sampling value."""
