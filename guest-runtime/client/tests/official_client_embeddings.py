# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, asks a guest with an embedding model for vectors."""
import sys

import openai

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
assert [entry.id for entry in client.models.list()] == [model]


def near(found, expected):
    return len(found) == len(expected) and all(abs(a - b) < 1e-9 for a, b in zip(found, expected))


for options in ({}, {"encoding_format": "float"}, {"dimensions": 2, "user": "u"}):
    answer = client.embeddings.create(model=model, input=["one", "two"], **options)
    assert [entry.index for entry in answer.data] == [0, 1], answer
    assert near(answer.data[1].embedding, [1.5, -1e-7]), answer
    assert answer.model == model and answer.usage.total_tokens == answer.usage.prompt_tokens == 6, answer
for given in ("one", [7, 8], [[7, 8]]):
    assert near(client.embeddings.create(model=model, input=given).data[0].embedding, [0.5, -1e-7])

for given, options, code in (
    ("overflow", {}, "context_length_exceeded"),
    ("one", {"dimensions": 1}, "invalid_value"),
    ("", {}, "invalid_value"),
):
    try:
        client.embeddings.create(model=model, input=given, **options)
    except openai.BadRequestError as error:
        assert error.code == code, error
    else:
        raise AssertionError(given)
try:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
except openai.BadRequestError as error:
    assert error.code == "wrong_endpoint", error
else:
    raise AssertionError("it answered")
print("ok")
