# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, against a real model: base URL and model are the arguments.

A small model says what it likes: this looks at the form of answers, never at their sense. The guest may be emulated and
make a token or two a second: everything is as short as it can be.
"""
import json
import sys
from typing import Literal

import openai
import pydantic

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=600)
assert [entry.id for entry in client.models.list()] == [model]
assert client.models.retrieve(model).id == model
messages = [{"role": "user", "content": "Capital of France?"}]
asked = {"model": model, "messages": messages, "temperature": 0, "seed": 1}

whole = client.chat.completions.create(**asked, max_tokens=5).choices[0]
assert whole.message.content and whole.finish_reason in ("stop", "length"), whole

text, usage, reasons = "", None, []
options = {"include_usage": True}
for chunk in client.chat.completions.create(**asked, max_tokens=5, stream=True, stream_options=options):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
assert (text, reasons) == (whole.message.content, [whole.finish_reason]), (text, reasons, whole)
assert 0 < usage.completion_tokens <= 5 and usage.prompt_tokens > 0, usage
assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage

several = client.chat.completions.create(**asked, max_tokens=3, n=2, logprobs=True, top_logprobs=2)
assert len(several.choices) == 2 and several.choices[0].message.content == several.choices[1].message.content, several
assert 2 <= several.usage.completion_tokens <= 6, several
for choice in several.choices:
    entries = choice.logprobs.content
    assert 0 < len(entries) <= 3 and all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.token == entry.top_logprobs[0].token for entry in entries), entries
    assert "".join(entry.token for entry in entries).startswith(choice.message.content), choice

completion = client.completions.create(model=model, prompt="The capital of France is", max_tokens=3, temperature=0)
assert completion.choices[0].text and completion.usage.completion_tokens <= 3, completion


class Opinion(pydantic.BaseModel):
    answer: Literal["yes", "no"]


parsed = client.chat.completions.parse(**asked, max_tokens=24, response_format=Opinion).choices[0]
assert isinstance(parsed.message.parsed, Opinion), parsed

parameters = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "lookup", "parameters": parameters}}]
choice = {"type": "function", "function": {"name": "lookup"}}
with client.chat.completions.stream(**asked, max_tokens=40, tools=tools, tool_choice=choice) as stream:
    for _ in stream:
        pass
    (called,) = stream.get_final_completion().choices[0].message.tool_calls
assert called.function.name == "lookup", called
assert json.loads(called.function.arguments)["unit"] in ("celsius", "fahrenheit"), called

for refused, kind, code in [
    ({"n": 1000}, openai.BadRequestError, "invalid_value"),
    ({"logit_bias": {"100000000": 1}}, openai.BadRequestError, "invalid_value"),
    ({"model": "other"}, openai.NotFoundError, "model_not_found"),
    ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
]:
    try:
        client.chat.completions.create(**{**asked, **refused})
    except openai.APIStatusError as error:
        assert type(error) is kind and error.code == code and error.type and error.message, error
    else:
        raise SystemExit(f"{refused} was accepted")
print("ok")
