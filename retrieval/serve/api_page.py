"""`/docs`: the description of the API as a page without scripts, which asks no other server."""

import json
from html import escape
from typing import Any

STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
code, pre { font: .875rem/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; max-height: 26rem; padding: .75rem; border: 1px solid; border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2rem .75rem .2rem 0; vertical-align: top; }
summary { cursor: pointer; }
"""


def api_page(description: dict[str, Any]) -> str:
    """An OpenAPI description as HTML."""
    info = description["info"]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>seenit API</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="stylesheet" href="/theme.css"><link rel="stylesheet" href="/docs.css"></head><body><main>',
        f"<h1>seenit {escape(info['version'])}: API</h1><p>{escape(info['description'])}</p>",
        '<p><a href="/openapi.json">OpenAPI</a>, <a href="/api/schema">JSON Schemas of the answers</a></p>',
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h1>Schemas</h1>")
    for name, schema in sorted(description["components"]["schemas"].items()):
        parts.append(f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_json(schema)}')
        parts.append("</details>")
    return "\n".join([*parts, "</main></body></html>\n"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
            f"<td><code>{escape(json.dumps(one.get('schema', {})))}</code></td></tr>"
            for one in parameters
        )
        parts.append(f"<table><tr><th>parameter</th><th>in</th><th>schema</th></tr>{rows}</table>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, {escape(kind)}: {_schema(content.get('schema', {}))}</p>")
    for status, response in operation.get("responses", {}).items():
        if not status.startswith("2"):
            continue
        for kind, content in response.get("content", {}).items():
            parts.append(f"<p>{escape(status)}, {escape(kind)}: {_schema(content.get('schema', {}))}</p>")
    return "\n".join(parts)


def _schema(schema: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    return f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' if name else _json(schema) if schema else ""


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
