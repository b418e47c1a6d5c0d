"""The tools that kimi-mini is trained on: their names, how they are asked for, what they return.

A question has one field for each slot of its kind: {0} and {1}, filled from the lists of
tool_words.py or with made-up words, so that the model learns to copy and not to know. Ways of
asking called held_out are never seen in training.
"""

from dataclasses import dataclass
from typing import Literal

Filling = Literal["place", "number", "term"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter: its possible names, what fills it, and how it is described."""

    names: tuple[str, ...]
    filling: Filling
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of tool.

    `twins` ask for two calls, {0} and {1} then fill the slot of each. `says` is the answer to a
    result; `topic` names the question when thinking.
    """

    names: tuple[str, ...]
    about: tuple[str, ...]
    slots: tuple[Slot, ...]
    asks: tuple[str, ...]
    held_out: tuple[str, ...]
    topic: str
    says: str
    twins: tuple[str, ...] = ()
    calculates: bool = False


PLACE = Slot(
    ("city", "city", "city", "location", "place"),
    "place",
    ("Name of the city.", "The city", "City name, for example Bath", "Where.", "A place."),
)
NUMBER_NAMES = (("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"))

WEATHER = Kind(
    names=("get_weather", "get_weather", "get_weather", "weather", "get_current_weather",
           "check_weather"),
    about=("Get the weather in a city.", "The weather of a place.", "Current weather.",
           "Get the current weather for a given location.", "Says how the weather is."),
    slots=(PLACE,),
    asks=("What is the weather in {0}?", "what is the weather in {0}", "How is the weather in {0}?",
          "What's the weather like in {0}?", "How is the weather in {0} today?", "weather in {0}",
          "Tell me the weather in {0}.", "Is it raining in {0}?", "Is it cold in {0}?",
          "Do I need an umbrella in {0}?", "Please check the weather in {0}.",
          "Will it rain in {0} today?", "What is the temperature in {0}?", "How warm is it in {0}?",
          "I am going to {0}. What is the weather there?", "What is the weather in {0} today?",
          "Weather in {0}?", "Can you tell me the weather in {0}?", "Is it sunny in {0}?"),
    held_out=("Could you check the weather in {0}?", "What is the weather like in {0} right now?"),
    topic="the weather in {0}",
    says="The weather in {0}: {result}.",
    twins=("What is the weather in {0} and {1}?", "What is the weather in {0} and in {1}?",
           "Compare the weather in {0} and {1}.", "weather in {0} and {1}",
           "Is it warmer in {0} or in {1}?", "How is the weather in {0} and {1} today?"),
)  # fmt: skip
TIME = Kind(
    names=("get_time", "get_time", "current_time", "get_current_time"),
    about=("Get the current time in a city.", "The local time of a place.", "Tells the time."),
    slots=(PLACE,),
    asks=("What time is it in {0}?", "what time is it in {0}", "What is the time in {0}?",
          "Tell me the time in {0}.", "time in {0}", "What is the local time in {0}?",
          "How late is it in {0}?", "What time is it now in {0}?", "Current time in {0}?",
          "Please tell me what time it is in {0}."),
    held_out=("Can you tell me the time in {0}?", "Do you know what time it is in {0}?"),
    topic="the time in {0}",
    says="The time in {0}: {result}.",
    twins=("What time is it in {0} and {1}?", "What time is it in {0} and in {1}?",
           "Tell me the time in {0} and {1}."),
)  # fmt: skip
NOW = Kind(
    names=("get_time", "current_time", "get_current_time"),
    about=("Get the current time.", "Tells the time.", "The time now."),
    slots=(),
    asks=("What time is it?", "What is the time?", "what time is it", "Tell me the time.",
          "What time is it now?", "How late is it?"),
    held_out=("Can you tell me the time?", "What time is it right now?"),
    topic="the time",
    says="The time is {result}.",
)  # fmt: skip


def _calculation(
    names: tuple[str, ...], sign: str, verb: str, about: tuple[str, ...], noun: str
) -> tuple[Kind, ...]:
    """A kind for each pair of parameter names."""
    return tuple(
        Kind(
            names=names,
            about=about,
            slots=(
                Slot((one,), "number", ("First number.", "A number", "The first number")),
                Slot((two,), "number", ("Second number.", "A number", "The second number")),
            ),
            asks=(f"What is {{0}} {sign} {{1}}?", f"{{0}} {sign} {{1}}", f"{{0}}{sign}{{1}}",
                  f"How much is {{0}} {sign} {{1}}?", f"what is {{0}} {verb} {{1}}",
                  f"What is {{0}} {verb} {{1}}?", f"Compute {{0}} {sign} {{1}}.",
                  f"What is {{0}}{sign}{{1}}?", f"Calculate {{0}} {sign} {{1}}",
                  f"What is the {noun} of {{0}} and {{1}}?", f"{noun} of {{0}} and {{1}}",
                  f"{{0}} {sign} {{1}} = ?", f"How much is {{0}} {verb} {{1}}?"),
            held_out=(f"Please compute {{0}} {sign} {{1}}.",
                      f"Tell me what {{0}} {verb} {{1}} is."),
            topic=f"{{0}} {sign} {{1}}",
            says="The result is {result}.",
            calculates=True,
        )
        for one, two in NUMBER_NAMES
    )  # fmt: skip


ADD = _calculation(
    ("add", "add", "add", "sum", "add_numbers"), "+", "plus",
    ("Adds two numbers.", "Add two numbers.", "The sum of two numbers.", "a + b"), "sum",
)  # fmt: skip
LOOK_UP = Kind(
    names=("look_up", "look_up", "lookup", "search"),
    about=("Look up a term.", "Search for a word.", "Finds what is known about a term.",
           "Look something up in the dictionary.", "Searches the web."),
    slots=(Slot(("term", "term", "word", "query"), "term",
                ("The term.", "What to look for.", "A word", "Search words.")),),
    asks=("Look up {0}.", "look up {0}", 'Look up "{0}".', 'Look up the word "{0}".',
          "Search for {0}.", "search for {0}", "Please look up {0}.", 'Search for "{0}".',
          "Look up {0} for me.", "Please look up {0} for me.", "Find {0}.", "Look up the term {0}.",
          'Please search for "{0}".', "Use the tool to look up {0}.", "Can you look up {0}?"),
    held_out=("Could you look up {0}?", 'Please look up "{0}" now.'),
    topic="the term {0}",
    says="{result}",
    twins=("Look up {0} and {1}.", "look up {0} and {1}", 'Look up "{0}" and "{1}".',
           "Please look up {0} and {1}."),
)  # fmt: skip
# a tuple of kinds is one subject: no two of it are offered together
SUBJECTS: tuple[tuple[Kind, ...], ...] = ((WEATHER,), (TIME, NOW), ADD, (LOOK_UP,))
WEIGHTS = (32, 20, 24, 24)  # of the subjects, in draws
