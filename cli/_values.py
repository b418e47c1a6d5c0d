"""Kinds of values that options take, each with its one rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from offload.amounts import parse_amount


class FiniteRange(click.FloatRange):
    """A float range that refuses nan and infinity too."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse and check; click's own message names the allowed interval."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(
                f"{value} is not in the range {self._describe_range()}; a finite number is needed.",
                param,
                ctx,
            )
        return number


class CountRange(click.IntRange):
    """A whole number from `min` on, or -1 for "unset", as other programs have it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse and check; click's own message names the allowed interval."""
        if click.INT.convert(value, param, ctx) == -1:
            return -1
        return int(super().convert(value, param, ctx))

    def _describe_range(self) -> str:
        return f"{super()._describe_range()}, or -1"


class Text(click.types.StringParamType):
    """Text in UTF-8 that is not empty. blank: white space alone is a text, too."""

    name = "text"

    def __init__(self, *, what: str, advice: str = "", blank: bool = False) -> None:
        self._what = what
        self._advice = advice
        self._blank = blank

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse an empty value and bytes that are not UTF-8."""
        text = str(super().convert(value, param, ctx))
        if not (text if self._blank else text.strip()):
            self.fail(f"{self._what} is empty{self._advice}", param, ctx)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"{self._what} is not valid UTF-8", param, ctx)
        return text


class Counts(click.types.StringParamType):
    """Whole numbers from 1 to `most` with commas between."""

    name = "counts"

    def __init__(self, most: int) -> None:
        self._range = click.IntRange(1, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse whatever else."""
        text = str(super().convert(value, param, ctx))
        for part in text.split(","):
            number: Any = click.INT.convert(part, param, ctx)  # type: ignore[arg-type]
            self._range.convert(number, param, ctx)
        return text


class Sizes(click.types.StringParamType):
    """Bytes, written like 24GiB or 9.3MB, with commas between; `most` of them, each above 0."""

    name = "sizes"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse whatever else."""
        text = str(super().convert(value, param, ctx))
        parts = text.split(",")
        if len(parts) > self._most:
            self.fail(f"{len(parts)} sizes are too many; give {self._most} at most", param, ctx)
        try:
            if min(parse_amount(part) for part in parts) < 1:
                self.fail(f"{text}: a size is 1 byte or more", param, ctx)
        except ValueError as exc:
            self.fail(f"{text}: {exc}", param, ctx)
        return text


class Samplers(click.types.StringParamType):
    """Names of sampling steps with commas between, in the order in which they apply."""

    name = "samplers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what `offload.SamplingParams` would refuse."""
        import offload

        text = str(super().convert(value, param, ctx))
        try:
            offload.SamplingParams(samplers=text)  # type: ignore[arg-type]
        except offload.RequestError as exc:
            self.fail(str(exc), param, ctx)
        return text


class GivenPath(click.Path):
    """A path that is not empty: "" would be the current folder, which nobody asks for so."""

    def __init__(self, *, what: str, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)
        self._what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty path."""
        if value == "":
            self.fail(f"the {self._what} is empty", param, ctx)
        return super().convert(value, param, ctx)


class Amount(click.ParamType[int | str]):
    """Bytes, more than none, written like 24GiB or 1.5GB; or one of these words."""

    name = "amount"

    def __init__(self, *words: str) -> None:
        self._words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """See click.ParamType."""
        if isinstance(value, int) or value in self._words:
            return value  # type: ignore[no-any-return]
        try:
            n_bytes = parse_amount(value)
        except ValueError as exc:
            words = "".join(f", or {word}" for word in self._words)
            self.fail(f"{value!r}: {exc}{words}", param, ctx)
        return n_bytes or self.fail(f"{value!r}: more than 0 is needed", param, ctx)


class Rate(click.types.StringParamType):
    """Bytes per second, written like 89.6GB/s; more than none."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse."""
        from offload.amounts import parse_rate

        if isinstance(value, float):
            return value
        try:
            rate = parse_rate(str(super().convert(value, param, ctx)))
        except ValueError as exc:
            self.fail(f"{value!r}: {exc}", param, ctx)
        return rate or self.fail(f"{value!r}: more than 0 is needed", param, ctx)
