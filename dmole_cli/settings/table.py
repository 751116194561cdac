"""The table of all settings in docs/method.md: `python -m dmole_cli.settings.table docs/method.md` updates it."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from dmole_cli.settings.declare import Section, expected_words, option_name, shown_default
from dmole_cli.settings.model import Settings

START, END = "<!-- settings -->\n", "<!-- /settings -->"


def settings_table() -> str:
    """One row per setting, sections after the settings of the whole run, as Markdown."""
    rows = ["| key | option | default | expected | meaning |", "|---|---|---|---|---|"]
    sections: dict[str, type[Section]] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sections[name] = field.annotation
        else:
            rows.append(_row(name, name, field))
    for section, model in sections.items():
        rows += [_row(f"{section}.{name}", name, field) for name, field in model.model_fields.items()]
    return "\n".join(rows) + "\n"


def _row(key: str, name: str, field: FieldInfo) -> str:
    option = "`--set`" if key == "method" else "–" if key in ("tasks", "unseen") else f"`{option_name(name, field)}`"
    return f"| `{key}` | {option} | {shown_default(field) or '–'} | {expected_words(field)} | {field.description} |"


def main() -> None:
    """Write the table into a page, between its two markers."""
    path = Path(sys.argv[1])
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    path.write_text(before + START + settings_table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
