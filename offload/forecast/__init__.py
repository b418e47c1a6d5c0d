"""What a machine will do with a model, before either is there.

    found = forecast(facts_of_path(path), describe(BoxWish(gpus=["rtx4090"], ram=256 << 30)))
    found.decode.expected, found.layout.fits, found.seconds      # nothing is measured for it
    forecast_json(found); forecast_tables(found); forecast_notes(found)
    known_boxes()                                                # those that people ask about

Models come from a file or its first part (`facts_of_path`), a shape (`facts_of_shape`) or a
published mix (`preset_named`); boxes are described (`describe`) or this machine (`this_machine`).

Names are imported when they are first used; parts of it work where little is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.lazy_names import lazy_names

if TYPE_CHECKING:
    from offload.bench.shapes import shape_named, types_named
    from offload.forecast.alternatives import known_boxes
    from offload.forecast.box_forecast import Question, forecast
    from offload.forecast.boxes import BoxWish, describe, rates_here, this_machine
    from offload.forecast.first_part import facts_of_path
    from offload.forecast.model_facts import facts_of_shape
    from offload.forecast.presets import preset_named
    from offload.forecast.report import (
        forecast_json,
        forecast_notes,
        forecast_tables,
        table_json,
        verdict_table,
    )
    from offload.forecast.timeline_plot import plot as plot_timeline

_HOMES = {
    "BoxWish": ("offload.forecast.boxes", "BoxWish"),
    "Question": ("offload.forecast.box_forecast", "Question"),
    "describe": ("offload.forecast.boxes", "describe"),
    "facts_of_path": ("offload.forecast.first_part", "facts_of_path"),
    "facts_of_shape": ("offload.forecast.model_facts", "facts_of_shape"),
    "forecast": ("offload.forecast.box_forecast", "forecast"),
    "forecast_json": ("offload.forecast.report", "forecast_json"),
    "forecast_notes": ("offload.forecast.report", "forecast_notes"),
    "forecast_tables": ("offload.forecast.report", "forecast_tables"),
    "known_boxes": ("offload.forecast.alternatives", "known_boxes"),
    "plot_timeline": ("offload.forecast.timeline_plot", "plot"),
    "preset_named": ("offload.forecast.presets", "preset_named"),
    "rates_here": ("offload.forecast.boxes", "rates_here"),
    "shape_named": ("offload.bench.shapes", "shape_named"),
    "table_json": ("offload.forecast.report", "table_json"),
    "this_machine": ("offload.forecast.boxes", "this_machine"),
    "types_named": ("offload.bench.shapes", "types_named"),
    "verdict_table": ("offload.forecast.report", "verdict_table"),
}

__all__ = [
    "BoxWish",
    "Question",
    "describe",
    "facts_of_path",
    "facts_of_shape",
    "forecast",
    "forecast_json",
    "forecast_notes",
    "forecast_tables",
    "known_boxes",
    "plot_timeline",
    "preset_named",
    "rates_here",
    "shape_named",
    "table_json",
    "this_machine",
    "types_named",
    "verdict_table",
]


if not TYPE_CHECKING:  # for type checkers, unknown names are errors
    __getattr__ = lazy_names(__name__, _HOMES)
