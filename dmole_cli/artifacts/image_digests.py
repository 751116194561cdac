"""Digests of picture files, each read once: what a file's size and time say is still the same is not read again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.errors import OtherVersion
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.kinds import IMAGE_DIGESTS
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_table, write_table

if TYPE_CHECKING:
    import numpy as np

MISSING = "missing"  # whoever opens the picture says so, with the row that names it
# A picture is 48 bytes here, whatever the length of its path: 16 of the digest of path, size and time, 32 of the content's.
KEY, CONTENT = 16, 32
LOOSE = 1 << 16  # digests that are kept as Python objects before they join the others


class ImageDigests:
    """sha256 of picture files by path.

    Args:
        kept: where digests are kept from command to command; it only saves time.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self._known: np.ndarray | None = None  # [pictures, 6] numbers of 8 bytes, sorted by the first
        self._loose: dict[bytes, bytes] = {}
        self._new = False

    def __getitem__(self, path: Path) -> str:
        """The digest of a file, or `MISSING`."""
        try:
            stat = path.stat()
        except OSError:
            return MISSING
        state = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        key = hashlib.blake2b(state.encode("utf-8", errors="surrogateescape"), digest_size=KEY).digest()
        content = self._find(key)
        if content is None:
            content = bytes.fromhex(digest_of_file(path))
            self._loose[key], self._new = content, True
            if len(self._loose) >= LOOSE:
                self._join()
        return content.hex()

    def save(self) -> None:
        """Keep what is new."""
        if self._new:
            self._join()
            write_digests(self.kept, self._table())
            self._new = False

    def _find(self, key: bytes) -> bytes | None:
        if key in self._loose:
            return self._loose[key]
        import numpy as np

        known, wanted = self._table(), np.frombuffer(key, dtype=np.uint64)
        place = int(np.searchsorted(known[:, 0], wanted[0]))
        while place < len(known) and known[place, 0] == wanted[0]:
            if known[place, 1] == wanted[1]:
                return known[place, 2:].tobytes()
            place += 1
        return None

    def _table(self) -> np.ndarray:
        if self._known is None:
            self._known = read_digests(self.kept)
        return self._known

    def _join(self) -> None:
        import numpy as np

        rows = b"".join(key + content for key, content in self._loose.items())
        both = np.concatenate([self._table(), np.frombuffer(rows, dtype=np.uint64).reshape(-1, (KEY + CONTENT) // 8)])
        self._known, self._loose = both[np.lexsort((both[:, 1], both[:, 0]))], {}


def read_digests(kept: Path) -> np.ndarray:
    """Read digests [images, 6]; none where the file does not exist."""
    import numpy as np

    flat = np.zeros(0, dtype=np.uint64)
    if kept.exists():
        try:
            table, _ = read_table(kept, IMAGE_DIGESTS)
            column = table.column("picture").combine_chunks()
            flat = np.frombuffer(column.buffers()[1], dtype=np.uint64)[: len(column) * (KEY + CONTENT) // 8]
        except OtherVersion:  # of an earlier dmole; it only saves time
            pass
    return flat.reshape(-1, (KEY + CONTENT) // 8)


def write_digests(kept: Path, known: np.ndarray) -> None:
    """Write digests [images, 6]."""
    import pyarrow as pa

    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY + CONTENT), len(known), [None, pa.py_buffer(known.tobytes())]
    )
    table = pa.table({"picture": column})
    write_table(kept, table, table.schema, Header.of(IMAGE_DIGESTS))
