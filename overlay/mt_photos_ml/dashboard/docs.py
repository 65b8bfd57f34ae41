# SPDX-License-Identifier: AGPL-3.0-only
"""The OpenAPI document as a page, without anything from elsewhere."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any


def render(document: Mapping[str, Any], style: str) -> str:
    """HTML: each route with what it takes and answers, and an example of each."""
    info = document["info"]
    body = "".join(
        _operation(document, path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style><body class="docs">'
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1><p>{escape(info['description'])}</p>"
        "<p>Every route but <code>GET /</code> and <code>GET /ping</code> wants the header <code>api-key</code>.</p>"
        f"{body}"
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        f"{''.join(_request(operation))}<table>{''.join(_answers(document, operation))}</table></section>"
    )


def _request(operation: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Takes <code>{escape(kind)}</code>"
        fields = content["schema"].get("properties", {})
        yield "".join(f"; <code>{escape(name)}</code>: {escape(_told(field))}" for name, field in fields.items())
        yield f"</p>{_example(content)}"


def _answers(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        examples = "".join(_example(content) for content in answer.get("content", {}).values())
        yield f"<tr><th>{status}<td>{escape(answer['description'])}{examples}</tr>"


def _told(field: Mapping[str, Any]) -> str:
    return str(field.get("description") or field.get("type", ""))


def _example(content: Mapping[str, Any]) -> str:
    if "example" not in content:
        return ""
    return f"<pre>{escape(json.dumps(content['example'], ensure_ascii=False, indent=1))}</pre>"
