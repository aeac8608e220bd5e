#!/usr/bin/env python3
"""jinja_cases: writes tests/golden/data/jinja/cases.json, snippets of templates with what jinja2 makes of them.

    python3 -m venv V && V/bin/pip install jinja2==3.1.6 && V/bin/python tests/peers/jinja_cases.py

The environment is the one that transformers renders chat templates in (chat_template_utils.py): immutable sandbox,
trim_blocks, lstrip_blocks, loopcontrols, its own tojson and raise_exception. A snippet that raises is kept as such; of
its message only that there is one is compared. The snippets are in jinja_snippets.txt: one a line: an expression
unless it holds a tag, a JSON string behind an @.
"""
import json, os

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
VARIABLES = {
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hé <b>there</b>"},
                 {"role": "assistant", "content": "naïve ☃ 漢字", "tool_calls": [{"name": "f", "arguments": {"x": 1, "y": [1.5, None, True]}}]}],
    "s": "Hello, World", "u": "Grüße, ÉLAN ☃ 漢字 😀", "empty": "", "n": 7, "f": 2.5, "neg": -3, "t": True, "no": False, "nil": None,
    "l": [3, 1, 2], "words": ["banana", "Apple", "cherry", "apple"], "nested": [[1, 2], [3, [4, 5]]],
    "d": {"b": 1, "a": 2, "C": {"x": "y"}},
    "rows": [{"k": "b", "v": 1, "w": {"z": 3}}, {"k": "a", "v": 2, "w": {"z": 1}}, {"k": "B", "v": 3, "w": {"z": 2}}, {"k": "a", "v": 1}],
    "lines": "one\n  two \n\nthree", "tricky": {"items": [1], "keys": 5, "é\"\\\n\u0001": "</script>&'"},
}
# Python's own names of things, which no template may rely on.
UNSTABLE = ("<generator", "<built-in", "<bound", " object at 0x", "dict_", "<function", "<class")


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise ValueError(message)


def snippets():
    for line in open(os.path.join(HERE, "jinja_snippets.txt"), encoding="utf-8"):
        line = line.rstrip("\n")
        if not line or line.startswith("//"):
            continue
        if line.startswith("@"):
            line = json.loads(line[1:])
        elif not any(tag in line for tag in ("{{", "{%", "{#")):
            line = "{{ " + line + " }}"
        yield line


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    cases = []
    for source in snippets():
        try:
            text = environment.from_string(source).render(bos_token="<s>", eos_token="</s>", tools=None, documents=None, add_generation_prompt=False, **VARIABLES)
            if not any(name in text for name in UNSTABLE):
                cases.append({"source": source, "rendered": text})
        except Exception as e:
            cases.append({"source": source, "raises": f"{type(e).__name__}: {e}"})
    with open(os.path.join(HERE, "..", "golden", "data", "jinja", "cases.json"), "w", encoding="utf-8") as out:
        json.dump({"variables": VARIABLES, "cases": cases}, out, ensure_ascii=False, indent=1)
        out.write("\n")
    print(len(cases), "cases,", sum("raises" in c for c in cases), "of them raise")


main()
