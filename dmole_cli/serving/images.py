"""Where the images of a request come from: data URIs; files below one folder; and URLs, where the service allows them."""

from __future__ import annotations

import base64
import binascii
import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from dmole_cli.data.images import open_bytes, read_image_file
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.serving.errors import invalid

MEGAPIXEL = 1_000_000
PARAM = "messages.0.content"


@dataclass(frozen=True)
class ImageSources:
    """What images a request may have.

    Attributes:
        folder: local files below it may be named by `file:` URLs; None for no local files.
        allow_urls: whether `http:` and `https:` URLs are fetched.
        max_pixels: maximum number of pixels of an image.
        max_bytes: maximum size of a file that is read or fetched.
        timeout: seconds for the download of an image.
    """

    folder: Path | None
    allow_urls: bool
    max_pixels: int
    max_bytes: int
    timeout: float

    def decode(self, content: bytes, name: str) -> Image.Image:
        """Decode an image as RGB.

        Args:
            content: of the file.
            name: for error messages.

        Raises:
            RequestError: it is not an image, or is too large.
        """
        try:
            return open_bytes(content, row=name, most=self.max_pixels)
        except DmoleError as error:
            raise invalid(error.message, param=PARAM) from error

    def read(self, url: str, name: str) -> bytes:
        """The bytes of an image; those of a remote one are fetched.

        Raises:
            RequestError: the service does not read such images, or it is too large.
        """
        if is_remote(url):
            return self._fetched(url, name)
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return _data(url, name)
        if scheme == "file":
            return self._file(url, name)
        raise invalid(f"{name}: expected a data URI like data:image/png;base64,...", param=PARAM)

    def _file(self, url: str, name: str) -> bytes:
        if self.folder is None:
            raise invalid(f"{name}: this service reads no local files; send a data URI", param=PARAM)
        parts = urlsplit(url)
        outside = invalid(f"{name}: only files below the folder of images can be named", param=PARAM)
        if parts.netloc not in ("", "localhost"):
            raise outside
        try:
            # Symbolic links are followed first, so that none leads out of the folder.
            path = (self.folder / unquote(parts.path)).resolve()
            inside = path.is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError) as error:  # a NUL character, or a loop of links
            raise outside from error
        if not inside:
            raise outside
        try:
            if path.is_file() and path.stat().st_size > self.max_bytes:
                raise invalid(f"{name}: the file has more than {self.max_bytes} bytes", param=PARAM)
            return read_image_file(path)
        except DmoleError as error:
            raise invalid(f"{name}: the file is missing or is not a regular file", param=PARAM) from error

    def _fetched(self, url: str, name: str) -> bytes:
        if not self.allow_urls:
            raise invalid(f"{name}: this service fetches no URLs; send a data URI", param=PARAM)
        try:
            with urllib.request.urlopen(
                url, timeout=self.timeout
            ) as answer:  # redirects stay within http, https and ftp
                content = answer.read(self.max_bytes + 1)
        except (OSError, ValueError, http.client.HTTPException, urllib.error.URLError) as error:
            raise invalid(f"{name}: fetching the URL failed: {first_line(error)[:200]}", param=PARAM) from error
        if len(content) > self.max_bytes:
            raise invalid(f"{name}: the URL has more than {self.max_bytes} bytes", param=PARAM)
        return content


def is_remote(url: str) -> bool:
    """Whether an image is on another machine."""
    return url[:16].partition(":")[0].lower() in ("http", "https")


def _data(url: str, name: str) -> bytes:
    """The bytes of a data URI with base64 (RFC 2397)."""
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise invalid(f"{name}: expected a data URI like data:image/png;base64,...", param=PARAM)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{name}: the data URI is not valid base64", param=PARAM) from error
