"""What a message that leaves the house consists of, for the line that the audit log gets before it goes."""

from __future__ import annotations

import hashlib
import json
import re

from flwr.app import ConfigRecord, Message

from fl_client.audit import Fact
from fl_client.packed import unpacked


def egress(question: Message, answer: Message, *, run: int, again: bool = False) -> dict[str, Fact]:
    """Run, study, round, and what the answer holds: its kind, number of tensors and of bytes, and their SHA-256.

    The digest is over each array's name and serialised bytes, then over the records of numbers and words as JSON; it tells
    whether bytes seen elsewhere are the ones that left. What the coordinator says about itself (study, round) is written only
    if it has the form of such a thing. `again` is told of bytes that had been answered before; they cost nothing more.
    """
    digest, size, tensors = hashlib.sha256(), 0, 0
    if answer.has_error():
        words = f"{answer.error.code} {answer.error.reason}".encode()
        digest.update(words)
        kind, size = "words", len(words)
    else:
        for record in answer.content.array_records.values():
            for name, array in unpacked(record).items():
                digest.update(name.encode())
                digest.update(array.data)
                size += len(array.data)
                tensors += 1
        plain = {key: dict(record.items()) for key, record in answer.content.metric_records.items()}
        words_and_flags = {key: dict(record.items()) for key, record in answer.content.config_records.items()}
        text = json.dumps({**plain, **words_and_flags}, sort_keys=True, default=str).encode()
        digest.update(text)
        size += len(text)
        kind = "arrays" if tensors else "words"
    asked = question.content.config_records.get("config", ConfigRecord()) if question.has_content() else ConfigRecord()
    study, number = asked.get("study-hash"), asked.get("server-round")
    return {
        "run": run,
        "study": study if isinstance(study, str) and re.fullmatch(r"[0-9a-f]{64}", study) else None,
        "round": number if isinstance(number, int) and 0 <= number < 10**6 else None,
        "asked": question.metadata.message_type.partition(".")[0],
        "kind": kind,
        "code": answer.error.code if answer.has_error() else None,
        "tensors": tensors,
        "bytes": size,
        "sha256": digest.hexdigest(),
        **({"again": True} if again else {}),
    }
