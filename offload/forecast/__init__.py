"""What a machine will do with a model, before either is there.

    found = forecast(facts_of_path(path), describe(BoxWish(gpus=["rtx4090"], ram=256 << 30)))
    found.decode.expected, found.layout.fits, found.seconds      # nothing is measured for it
    forecast_json(found); forecast_tables(found); forecast_notes(found)
    known_boxes()                                                # those that people ask about

Models come from a file or its first part (`facts_of_path`), a shape (`facts_of_shape`) or a
published mix (`preset_named`); boxes are described (`describe`) or this machine (`this_machine`).
"""

from offload.bench.shapes import shape_named, types_named
from offload.forecast.alternatives import known_boxes
from offload.forecast.boxes import BoxWish, describe, rates_here, this_machine
from offload.forecast.first_part import facts_of_path
from offload.forecast.forecast import Question, forecast
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
