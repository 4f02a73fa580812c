# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, against a real model: base URL and model are the arguments.

A small model says what it likes: this looks at the form of answers, never at their sense.
"""
import json
import sys

import openai
import pydantic

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=600)
assert [entry.id for entry in client.models.list()] == [model]
messages = [{"role": "user", "content": "Capital of France?"}]
asked = {"model": model, "messages": messages, "temperature": 0, "seed": 1}

whole = client.chat.completions.create(**asked, max_tokens=8).choices[0]
assert whole.message.content and whole.finish_reason in ("stop", "length"), whole

text, usage, reasons = "", None, []
options = {"include_usage": True}
for chunk in client.chat.completions.create(**asked, max_tokens=8, stream=True, stream_options=options):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
assert (text, reasons) == (whole.message.content, [whole.finish_reason]), (text, reasons, whole)
assert 0 < usage.completion_tokens <= 8 and usage.total_tokens > usage.completion_tokens, usage

several = client.chat.completions.create(**asked, max_tokens=4, n=2, logprobs=True, top_logprobs=2)
assert len(several.choices) == 2 and several.choices[0].message.content == several.choices[1].message.content, several
for choice in several.choices:
    entries = choice.logprobs.content
    assert 0 < len(entries) <= 4 and all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.token == entry.top_logprobs[0].token for entry in entries), entries

completion = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0)
assert completion.choices[0].text and completion.usage.completion_tokens <= 4, completion


class City(pydantic.BaseModel):
    city: str
    large: bool


parsed = client.chat.completions.parse(**asked, max_tokens=60, response_format=City).choices[0]
assert parsed.finish_reason == "length" or isinstance(parsed.message.parsed, City), parsed

parameters = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "lookup", "parameters": parameters}}]
choice = {"type": "function", "function": {"name": "lookup"}}
call = client.chat.completions.create(**asked, max_tokens=40, tools=tools, tool_choice=choice).choices[0]
(called,) = call.message.tool_calls
assert called.function.name == "lookup", call
assert json.loads(called.function.arguments)["unit"] in ("celsius", "fahrenheit"), call
with client.chat.completions.stream(**asked, max_tokens=40, tools=tools, tool_choice=choice) as stream:
    for _ in stream:
        pass
    (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
assert streamed.function.arguments == called.function.arguments, (streamed, called)

for refused, status, code in [
    ({"n": 1000}, 400, "invalid_value"),
    ({"model": "other"}, 404, "model_not_found"),
    ({"max_tokens": 100_000}, 400, "context_length_exceeded"),
]:
    try:
        client.chat.completions.create(**{**asked, **refused})
        raise SystemExit(f"{refused} was accepted")
    except openai.APIStatusError as error:
        assert (error.status_code, error.code) == (status, code), error
print("ok")
