"""What the coordinator changes in Flower's SuperLink, at the places in Flower that it leans on."""

import inspect

import pytest
from flwr.supercore import sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import text

from fl_server.superlink import BUSY_MS, PAGE_BYTES, pragmas


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # Flower's own, when it makes its tables
def test_flowers_database_is_opened_with_our_page_and_our_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", pragmas())
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    with store.session() as session:
        told = {name: session.scalar(text(f"PRAGMA {name}")) for name in ("page_size", "busy_timeout", "journal_mode")}
    assert told == {"page_size": PAGE_BYTES, "busy_timeout": BUSY_MS, "journal_mode": "wal"}


def test_a_part_that_can_not_be_stored_in_time_is_lost_in_flower():
    """The reason for our patience: a failed write is a line in a log, and the answer to the hospital is no error."""
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    body = inspect.getsource(SqlCoreState.store_object)
    assert 'log(ERROR, "Failed to store object %s: %s", object_id, err)\n            return False' in body
