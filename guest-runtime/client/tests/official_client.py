# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, against the proxy: base URL and model are the arguments."""
import sys

import openai

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

for refused, status, code in [
    ({"n": 1000}, 400, "invalid_value"),
    ({"logprobs": True}, 400, "unsupported_parameter"),
    ({"model": "other"}, 404, "model_not_found"),
]:
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **refused})
        raise SystemExit(f"{refused} was accepted")
    except openai.APIStatusError as error:
        assert (error.status_code, error.code) == (status, code), error
print("ok")
