"""Task pairs: a function without its docstring -> its entry as help() prints it.

    python pairs.py --out DIR [--docs DIR] --tokenizer DIR

The entry is the signature as a caller sees it (no self, no annotations) and the
first sentence of the docstring. The first half can be worked out exactly, the
second only guessed at, and neither without reading the function: a model trained
on shuffled pairs learns the form and nothing else.

Only files that pretraining never saw give pairs, and a file's functions all go
to one of train, valid and test, so nothing of a test file is ever trained on.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus import Document, documents, general_texts, percent
from transformers import AutoTokenizer

MAX_PROMPT_TOKENS, MAX_ANSWER_TOKENS = 160, 56
MAX_PER_FILE = {"train": 80, "valid": 20, "test": 20}
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
SIZES = {"train": 2400, "valid": 150, "test": 300}

Row = dict[str, object]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    name: str  # with its classes
    code: str  # without the docstring
    signature: str
    summary: str


def summary_line(docstring: str) -> str | None:
    """The first sentence of a docstring, or None where it is no summary."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    line = SENTENCE_END.split(paragraph)[0]
    if not 12 <= len(line) <= 160 or not line.isascii() or len(line.split()) < 3:
        return None
    if not line[0].isalpha() or line.endswith((":", ",", ";", "-", " .")):
        return None
    if ">>>" in line or "->" in line:  # an example or a signature, not a sentence
        return None
    return line if line[-1] in ".!?" else line + "."


def without_docstring(source: str, node: FunctionNode) -> str:
    """The function's own lines less its docstring, at the margin."""
    lines = source.split("\n")
    docstring, last = node.body[0], node.body[-1]
    kept = (
        lines[node.lineno - 1 : docstring.lineno - 1]
        + lines[docstring.end_lineno : last.end_lineno]
    )
    return textwrap.dedent("\n".join(line.rstrip() for line in kept if line.strip()))


def signature(node: FunctionNode) -> str:
    """The call as its caller sees it."""
    arguments = node.args
    positional = arguments.posonlyargs or arguments.args
    if positional and positional[0].arg in {"self", "cls"}:
        del positional[0]
    every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    for argument in [*every, arguments.vararg, arguments.kwarg]:
        if argument is not None:
            argument.annotation = None
    return f"{node.name}({ast.unparse(arguments)})"


def functions(doc: Document) -> Iterator[Function]:
    """The functions and methods of a file that a summary describes."""

    def visit(node: ast.AST, prefix: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, FunctionNode):
                docstring = ast.get_docstring(child)
                line = summary_line(docstring) if docstring else None
                if line is not None and child.body[0].lineno > child.lineno and len(child.body) > 1:
                    code = without_docstring(doc.text, child)
                    yield Function(prefix + child.name, code, signature(child), line)
            else:
                yield from visit(child, prefix)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(doc.text)
        except SyntaxError:
            return
    yield from visit(tree, "")


def shorten(code: str, length: Callable[[str], int]) -> str | None:
    """Drop lines from the end until the code fits; None where little would be left."""
    lines = code.split("\n")
    while length("\n".join(lines)) > MAX_PROMPT_TOKENS:
        lines.pop()
    return "\n".join(lines) if len(lines) >= 2 else None


def split_of(path: str) -> str:
    n = percent(path, "split")
    return "test" if n < 20 else "valid" if n < 30 else "train"


def collect(docs_dir: Path | None, length: Callable[[str], int]) -> dict[str, list[Row]]:
    every = list(documents(docs_dir))
    seen_in_pretraining = "\n".join(d.text for d in every if d.bucket == "pretrain")
    splits: dict[str, list[Row]] = {name: [] for name in SIZES}
    used: set[str] = set()  # bodies and summaries, over all splits
    order = {"test": 0, "valid": 1, "train": 2}
    held_out = [d for d in every if d.bucket == "pairs"]
    for doc in sorted(held_out, key=lambda d: order[split_of(d.path)]):
        found: list[Row] = []
        for function in functions(doc):
            prompt = shorten(function.code, length)
            body = function.code.split("\n", 1)[-1]
            answer = f"{function.signature}\n    {function.summary}"
            if prompt is None or length(answer) > MAX_ANSWER_TOKENS:
                continue
            if {function.summary, body} & used or function.summary in seen_in_pretraining:
                continue
            used |= {function.summary, body}
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            found.append({"messages": messages, "source": f"{doc.path}:{function.name}"})
        random.Random(doc.path).shuffle(found)
        split = split_of(doc.path)
        splits[split] += found[: MAX_PER_FILE[split]]
    for name, rows in splits.items():
        random.Random(name).shuffle(rows)
        del rows[SIZES[name] :]
    return splits


def write(path: Path, rows: list[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in collect(args.docs, lambda text: len(tokenizer(text).input_ids)).items():
        write(args.out / f"{name}.jsonl", rows)
        files = Counter(str(row["source"]).split(":")[0] for row in rows)
        print(f"{name}: {len(rows)} pairs of {len(files)} files")
    write(args.out / "general.jsonl", [{"text": text} for text in general_texts(args.docs)])


if __name__ == "__main__":
    main()
