"""The argument MODEL: a file, or a model on the hub, hf:OWNER/REPO[:QUANT]."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from cli._options import model_argument as path_argument

F = TypeVar("F", bound=Callable[..., object])


def model_argument(command: F) -> F:
    """MODEL as a file: of a model on the hub a complete copy in the cache, or it is downloaded."""

    @functools.wraps(command)
    def with_file(*, model: Path | None, **values: Any) -> object:
        from cli.hub_model import local_model

        return command(model=local_model(model), **values)

    return cast(F, path_argument(with_file))


def header_argument(command: F) -> F:
    """MODEL, of which headers alone are looked at: of a model on the hub only they are fetched.

    With --check, --plan-out or --plan-file all of it is.
    """

    @functools.wraps(command)
    def with_headers(*, model: Path | None, **values: Any) -> object:
        from cli.hub_model import local_headers, local_model

        if values.get("check") or values.get("plan_out") or values.get("plan_file"):
            return command(model=local_model(model), **values)
        with local_headers(model) as path:
            return command(model=path, **values)

    return cast(F, path_argument(with_headers))
