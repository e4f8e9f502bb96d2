"""Who is at fault where hospitals could not open what another had sealed for them, before anything was paid.

Who could not says so and is out of the attempt (`SiteRound.accept`). That it lies, or that the other sealed nothing that can be
opened, looks the same from outside: to show which, it would have to lay open its keys, and with them its shares of everybody's
secrets. So complaints are counted: of each two that are in dispute one is at fault, and who is in dispute with more others than
can be liars is a liar.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def complaint(senders: Collection[str]) -> str:
    """What a site says that can't open the shares of these."""
    names = ", ".join(f"'{name}'" for name in sorted(senders))
    return (
        f"the shares of {names} can't be opened: they are not for this site and round, were changed on the way, or were sealed "
        "by who was shown other keys than this site"
    )


def accused(reason: str) -> set[str]:
    """Whose shares could not be opened, if this reason is a `complaint`."""
    names = re.match(r"the shares of (('[^']*'(, )?)+) can't be opened", reason)
    return set(re.findall(r"'([^']*)'", names[1])) if names else set()


def at_fault(disputes: Collection[frozenset[str]], *, liars: int) -> dict[str, int]:
    """Who must be left out, with the number of its disputes: the one in most of them, as long as these are more than `liars`.

    `disputes` holds pairs of sites. Up to `liars` of the sites may lie, and never so many that nobody can be found: where
    there are more, it may be that several are in as many disputes, and all of these are named.
    """
    left, found = set(disputes), dict[str, int]()
    while left:
        count = {name: sum(name in pair for pair in left) for name in set().union(*left)}
        most = max(count.values())
        if most <= liars:
            break
        worst = {name for name, number in count.items() if number == most}
        found |= dict.fromkeys(sorted(worst), most)
        left = {pair for pair in left if not pair & worst}
    return found
