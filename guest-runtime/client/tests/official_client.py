# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, against the proxy: base URL and model are the arguments."""
import json
import sys

import openai
import pydantic

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
assert [entry.id for entry in client.models.list()] == [model]

messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of France?"}]
whole = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0, seed=1)
assert whole.choices[0].message.content == "Paris.", whole
assert whole.choices[0].finish_reason == "stop" and whole.usage.total_tokens == 7, whole
assert whole.id.startswith("chatcmpl-") and whole.created > 1_700_000_000 and whole.model == model

text, usage, reasons = "", None, []
options = {"include_usage": True}
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
assert text == "Paris." and usage.completion_tokens == 4 and reasons == ["stop"], (text, usage, reasons)

several = client.chat.completions.create(model=model, messages=messages, n=3, logprobs=True, top_logprobs=2)
assert [choice.message.content for choice in several.choices] == ["Paris."] * 3, several
assert [entry.token for entry in several.choices[2].logprobs.content] == ["Par", "is", "."], several
assert several.choices[0].logprobs.content[0].top_logprobs[1].token == "Par", several
texts = {}
for chunk in client.chat.completions.create(model=model, messages=messages, n=2, stream=True):
    for choice in chunk.choices:
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
assert texts == {0: "Paris.", 1: "Paris."}, texts

text = client.completions.create(model=model, prompt="The capital of France is", logprobs=1)
assert text.choices[0].text == "Paris." and text.choices[0].logprobs.text_offset == [0, 3, 5], text
streamed = client.completions.create(model=model, prompt="The capital of France is", stream=True)
assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == "Paris."


class City(pydantic.BaseModel):
    city: str


parsed = client.chat.completions.parse(model=model, messages=messages, response_format=City)
assert parsed.choices[0].message.parsed == City(city="Paris"), parsed
free = client.chat.completions.create(model=model, messages=messages, response_format={"type": "json_object"})
assert json.loads(free.choices[0].message.content) == {"city": "Paris"}, free

tools = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]
for extra, reason, count in [
    ({"messages": [{"role": "user", "content": "call"}]}, "tool_calls", 2),
    ({"tool_choice": "required"}, "tool_calls", 1),
    ({"tool_choice": {"type": "function", "function": {"name": "lookup"}}}, "stop", 1),
    ({}, "stop", 0),
]:
    asked = {"model": model, "messages": messages, "tools": tools, **extra}
    answer = client.chat.completions.create(**asked)
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["lookup"] * count, answer
    assert all(isinstance(json.loads(call.function.arguments), dict) for call in calls), answer
    assert answer.choices[0].finish_reason == reason, answer
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert [call.function.name for call in final.message.tool_calls or []] == ["lookup"] * count, final
    assert (final.finish_reason, final.message.content) == (reason, answer.choices[0].message.content), final
    if calls:
        history = [*asked["messages"], answer.choices[0].message]
        history += [{"role": "tool", "tool_call_id": call.id, "content": "42"} for call in calls]
        assert client.chat.completions.create(model=model, messages=history).choices[0].message.content == "Paris."

for refused, status, code in [
    ({"n": 1000}, 400, "invalid_value"),
    ({"logit_bias": {"3": 2}}, 400, "invalid_value"),
    ({"logit_bias": {"1": 101}}, 400, "invalid_value"),
    ({"prediction": {"type": "content", "content": "x"}}, 400, "unsupported_parameter"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, 400, "invalid_value"),
    ({"model": "other"}, 404, "model_not_found"),
]:
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **refused})
        raise SystemExit(f"{refused} was accepted")
    except openai.APIStatusError as error:
        assert (error.status_code, error.code) == (status, code), error
print("ok")
