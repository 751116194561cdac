"""Settings of the service, `dmole serve`."""

from __future__ import annotations

from dmole_cli.settings.declare import Section, setting


class ServeSettings(Section):
    """The service of `dmole serve`."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 for all of the machine")
    port: int = setting(8000, "port to listen on, 0 for a free one", ge=0, le=65535)
    batch: int = setting(16, "maximum number of requests that are answered together", option="--max-batch", ge=1)
    queue: int = setting(64, "maximum number of requests in progress; more are refused with 429", ge=1)
    timeout: float = setting(60.0, "seconds after which a request is given up", gt=0)
    max_body: float = setting(16.0, "maximum size of a request and of an image file, in MiB", gt=0, le=1024)
    max_images: int = setting(8, "maximum number of images of a request", ge=0)
    max_pixels: float = setting(25.0, "maximum size of an image, in million pixels", gt=0, le=178)
    longest_question: int = setting(4096, "maximum number of tokens of a question with its images", ge=1)
    longest_answer: int = setting(512, "maximum number of tokens that a request may ask for", ge=1)
    images: str | None = setting(
        None, "folder of images that requests may name by file: URLs, by default none", option="--image-folder"
    )
    allow_urls: bool = setting(False, "fetch images that requests name by http: and https: URLs")
    unload_idle: int = setting(
        0, "unload experts that none of this number of latest requests has used; 0 keeps them in memory", ge=0
    )
    watch: bool = setting(False, "take up new experts, and changed ones, without a restart")
