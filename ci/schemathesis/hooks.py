# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON, tokens that the service made, and names of what it has: so that requests come past the first checks."""

import json
import os
import ssl
import urllib.request

import schemathesis

BASE = os.environ["CHRYSALIS_SCHEMATHESIS_URL"]
RELEASE = os.environ["CHRYSALIS_SCHEMATHESIS_RELEASE"]
TILES = ["tile/0/000.p/4", "tile/entries/000.p/4"]


@schemathesis.serializer("application/json")
def canonical(ctx, value):
    """RFC 8785, for values without fractions. Bytes go as they are."""
    if isinstance(value, bytes):
        return value
    text = json.dumps(whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=repr)
    return text.encode("utf-8", "surrogatepass")


def whole(value):
    """A JSON number like 3912.0 is an integer, and is written as one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(field) for key, field in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


@schemathesis.deserializer("application/octet-stream")
def octets(ctx, response):
    return response.content


def challenge():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(f"{BASE}/v1/challenges", data=b"", method="POST")
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:
        return json.load(answer)["token"]


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Every other request gets what the service knows."""
    before_call.turn = not before_call.turn
    name = case.operation.definition.raw.get("operationId")
    body = case.body
    if before_call.turn and name == "releaseKey" and isinstance(body, dict) and is_token(body.get("token")):
        case.body = body | {"token": challenge()}
    if before_call.turn and name == "release" and is_digest(case.path_parameters.get("digest")):
        case.path_parameters["digest"] = RELEASE
    if before_call.turn and name == "tile" and str(case.path_parameters.get("tile", "")).startswith("tile/"):
        case.path_parameters["tile"] = TILES[len(case.path_parameters["tile"]) % 2]


before_call.turn = False


def is_hex(value, digits):
    return isinstance(value, str) and len(value) == digits and all(c in "0123456789abcdef" for c in value)


def is_token(value):
    return is_hex(value, 112)


def is_digest(value):
    return is_hex(value, 64)
