"""Joins two annotation files of any size: one of them is indexed in a temporary SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from dmole_cli.errors import DmoleError


class Lookup:
    """JSON values by key; a key may have several values, which keep their order."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def all(self, key: object) -> list[Any]:
        """The values of a key; empty if the key is unknown."""
        rows = self._database.execute("select value from pairs where key = ? order by rowid", (str(key),))
        return [json.loads(value) for (value,) in rows]


@contextmanager
def indexed(pairs: Iterable[tuple[object, Any]]) -> Iterator[Lookup]:
    """Index (key, value) pairs by key; keys are compared as texts, so 7 finds the values of "7".

    Raises:
        DmoleError: the temporary folder cannot be written.
    """
    with TemporaryDirectory(prefix="dmole-") as folder:
        # Neither journal nor sync: the file is temporary, and a crash needs no recovery.
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
        except sqlite3.OperationalError as error:
            raise DmoleError(
                f"cannot write a temporary file in {folder}: {error}", "free disk space, or set TMPDIR"
            ) from error
        finally:
            database.close()
