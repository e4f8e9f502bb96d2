"""A radiomics checklist of which the software fills in what it knows and leaves the rest open."""


def checklist(world: object, record: object, facts: object) -> list[dict[str, object]]:
    """Not written yet."""
    return []
