"""Contact sheets as metadata of assets."""

from collections.abc import Sequence
from typing import Protocol

import dagster as dg

from flexy_assets.reporting.thumbnails import make_contact_sheet, markdown_image
from resources.images import ImageStore


class ImageFile(Protocol):
    """A row with an image file."""

    @property
    def image_path(self) -> str | None: ...
    @property
    def image_sha256(self) -> str | None: ...


def contact_sheet_metadata(
    store: ImageStore, title: str, files: Sequence[ImageFile], columns: int = 10
) -> dict[str, dg.MarkdownMetadataValue]:
    """Return the readable images of these files on one sheet, under `title`; empty where none is readable."""
    read = store.read_many([(file.image_path or "", file.image_sha256) for file in files])
    images = [image for image in read if not isinstance(image, Exception)]
    if not images:
        return {}
    return {title: dg.MetadataValue.md(markdown_image(title, make_contact_sheet(images, columns)))}
