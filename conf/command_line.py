"""What is said of a KEY=VALUE that the parser of the command line can't read."""

from __future__ import annotations


def unreadable(argument: str, detail: str) -> str:
    """A sentence on the argument and what such ones lack most often, then the parser's own words.

    >>> print(unreadable("sites=[a", "no viable alternative"))
    sites=[a can't be read: brackets must be closed, and names with special characters in them be quoted: 'key=["*.norm.*"]'
    (no viable alternative)
    """
    lines = [line.rstrip() for line in detail.splitlines() if line.strip() and not line.startswith("See https")]
    sentence = f"{argument} is no KEY=VALUE"
    if "=" in argument:
        sentence = f"{argument} can't be read: brackets must be closed, and names with special characters in them be quoted: "
        sentence += """'key=["*.norm.*"]'"""
    said = "\n".join(lines)
    return f"{sentence}\n({said})" if said else sentence
