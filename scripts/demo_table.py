"""Put the demo's measured table where the documents show it.

rango demo --output demo-seeds --seeds 0 1 2
cp demo-seeds/result.json benchmarks/results/demo.json
python scripts/demo_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from rango.report.comparison import comparison_markdown

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo.json"
PAGES = ("README.md", "README.es.md", "docs/demo.md")
BEGIN, END = "<!-- demo-table -->\n", "<!-- /demo-table -->\n"


def filled(page: str, table: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    table = comparison_markdown(json.loads(RESULT.read_text(encoding="utf-8"))["rows"])
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
