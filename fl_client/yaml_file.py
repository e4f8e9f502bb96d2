"""The YAML files that a person at the hospital writes by hand: settings, series rules, label maps.

A tab, a missing colon or a list where names are wanted is the person's to mend, so it is said with file and line.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

SHORT, SHALLOW = 10_000, 300
"""Characters of a text, and marks in it that open something inside something: such a text nests less than Python can follow."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Names and values of a YAML file. Raises `ValueError` naming file and line if it holds something else, and `OSError`."""
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found}; lines of the form 'name: value' are right")
    return content


def _parsed(text: str) -> Any:
    """What a text holds: by libyaml, in a tenth of the time; what it refuses, by the parser whose words people know."""
    if yaml.__with_libyaml__ and len(text) <= SHORT and sum(map(text.count, "[{-?")) <= SHALLOW:
        with suppress(yaml.YAMLError, ValueError, RecursionError):
            return yaml.load(text, Loader=yaml.CSafeLoader)
    return yaml.safe_load(text)
