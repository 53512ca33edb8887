"""The part of an image that the editor sees, and where its edit is pasted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexy_assets.storage.edits import EditTaskRow
from resources import masks
from resources.images import ImageStore

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_SHARE = 0.35  # context around a mask on each side, as a share of the mask's longer side


@dataclass(frozen=True, eq=False)
class Canvas:
    """A source image in RGB. With a mask, the editor sees only its surroundings, and no pixel outside it changes."""

    source: Image
    mask: masks.Mask | None = None

    @classmethod
    def read(cls, task: EditTaskRow, store: ImageStore) -> Canvas:
        """Return a task's canvas. Raises `FlexyError` for an unreadable image or a mask of another shape."""
        source = store.read(task.image_path, task.image_sha256)
        if task.mask_path is None:
            return cls(source)
        mask = masks.mask_from_image(store.read(task.mask_path, task.mask_sha256))
        return cls(source, masks.fit_mask(mask, *source.size))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop: a square around the mask, limited to the image."""
        width, height = self.source.size
        if self.mask is None:
            return 0, 0, width, height
        left, top, right, bottom = masks.bounding_box(self.mask)
        side = round(masks.longer_mask_side(self.mask) * (1 + 2 * CONTEXT_SHARE))
        crop_width, crop_height = min(side, width), min(side, height)
        left = min(max((left + right - crop_width) // 2, 0), width - crop_width)
        top = min(max((top + bottom - crop_height) // 2, 0), height - crop_height)
        return left, top, left + crop_width, top + crop_height

    def crop(self, image: Image) -> Image:
        """Return the part of an image of the source's size that the editor sees."""
        return image if self.mask is None else image.crop(self.box)

    def paste(self, edit: Image) -> Image:
        """Return the source with an edited crop pasted inside the mask."""
        if self.mask is None:
            return edit
        pasted = self.source.copy()
        pasted.paste(edit, self.box[:2])
        return masks.keep_outside(self.source, pasted, self.mask)

    @property
    def mask_image(self) -> Image | None:
        """The mask, L, white where the image may change."""
        from PIL import Image

        return None if self.mask is None else Image.fromarray(self.mask.astype("uint8") * 255)

    @property
    def cropped_mask(self) -> Image | None:
        """The crop of the mask that the editor sees."""
        mask = self.mask_image
        return None if mask is None else self.crop(mask)
