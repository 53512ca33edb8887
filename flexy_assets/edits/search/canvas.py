"""What an editor is shown of a picture, and where what it makes of that goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexy_assets.storage.edits import EditTaskRow
from resources import masks
from resources.images import ImageStore

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_SHARE = 0.35
"""What is shown around a mask on each side, as a share of the mask's longer side."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A source in RGB; with a mask, only its surroundings are shown, and outside of it every pixel stays."""

    source: Image
    mask: masks.Mask | None = None

    @classmethod
    def of(cls, task: EditTaskRow, store: ImageStore) -> Canvas:
        """A task's. Raises `FlexyError` where a picture is lost or the mask is not the source's."""
        source = store.read(task.image_path, task.image_sha256)
        if task.mask_path is None:
            return cls(source)
        mask = masks.mask_from_image(store.read(task.mask_path, task.mask_sha256))
        return cls(source, masks.fit_mask(mask, *source.size))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is shown: a square around the mask as far as the picture has one."""
        width, height = self.source.size
        if self.mask is None:
            return 0, 0, width, height
        left, top, right, bottom = masks.bounding_box(self.mask)
        side = round(masks.longer_mask_side(self.mask) * (1 + 2 * CONTEXT_SHARE))
        wide, high = min(side, width), min(side, height)
        left = min(max((left + right - wide) // 2, 0), width - wide)
        top = min(max((top + bottom - high) // 2, 0), height - high)
        return left, top, left + wide, top + high

    def shown(self, picture: Image) -> Image:
        """What the editor sees of a picture of the source's size."""
        return picture if self.mask is None else picture.crop(self.box)

    def filled(self, edit: Image) -> Image:
        """The source with an edit of what was shown of it."""
        if self.mask is None:
            return edit
        whole = self.source.copy()
        whole.paste(edit, self.box[:2])
        return masks.keep_outside(self.source, whole, self.mask)

    @property
    def stencil(self) -> Image | None:
        """The mask of what is shown, L, white where it may change."""
        from PIL import Image

        return None if self.mask is None else self.shown(Image.fromarray(self.mask.astype("uint8") * 255))
