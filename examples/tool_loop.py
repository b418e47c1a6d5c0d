"""A tool loop: the model calls functions until it has its answer."""

import json
import sys

import offload

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def get_weather(city: str) -> str:
    """Stands for a real service."""
    return {"Paris": "18 degrees and sunny"}.get(city, f"nothing is known of {city}")


path = sys.argv[1] if len(sys.argv) > 1 else None
messages: list[offload.Message | dict[str, str]] = [
    {"role": "user", "content": "What is the weather in Paris?"}
]
with offload.load(path) as engine:
    for _ in range(5):  # turns at most
        reply = engine.chat(messages, tools=TOOLS, temperature=0).message()
        messages.append(reply)
        for call in reply.tool_calls:
            result = get_weather(**json.loads(call.arguments))
            print(f"{call.id} {call.arguments} -> {result}")
            messages.append({"role": "tool", "tool_call_id": str(call.id), "content": result})
        if not reply.tool_calls:
            print(reply.content)
            break
