"""Joining two annotation files without holding either: a table of keys and values in a temporary file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any


class Lookup:
    """Values of JSON by key, several to a key, each key's in the order in which they came."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def all(self, key: object) -> list[Any]:
        """The values of a key, none where it is unknown."""
        rows = self._database.execute("select value from pairs where key = ? order by rowid", (str(key),))
        return [json.loads(value) for (value,) in rows]


@contextmanager
def looked_up(pairs: Iterable[tuple[object, Any]]) -> Iterator[Lookup]:
    """Give a lookup of (key, value) pairs; keys are compared as texts, so that 7 finds what was kept under "7"."""
    with TemporaryDirectory(prefix="dmole-") as folder:
        # No journal, no sync: nobody reads this file but us, and a crash takes it along.
        database = sqlite3.connect(f"{folder}/pairs.sqlite", isolation_level=None)
        try:
            database.execute("pragma journal_mode = off")
            database.execute("pragma synchronous = off")
            database.execute("create table pairs (key text, value text)")
            database.execute("begin")
            database.executemany(
                "insert into pairs values (?, ?)",
                ((str(key), json.dumps(value, ensure_ascii=False)) for key, value in pairs),
            )
            database.execute("create index by_key on pairs (key)")
            database.execute("commit")
            yield Lookup(database)
        finally:
            database.close()
