"""Hook of mkdocs: the home page is README.md, whose links lead into docs/."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "index.md":
        return markdown
    return (ROOT / "README.md").read_text().replace("](docs/", "](")
