"""Image files are written whole or not at all, stay under their root, and are read as RGB or refused with a reason."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, write_atomically
from resources.images import MAX_CHUNK_BYTES, MAX_PIXELS, ImageStore, UnreadableImageError

RED = (255, 0, 0)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def noise(side: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def put(store: ImageStore, name: str, content: bytes) -> str:
    file = Path(store.root, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return name


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write; each row of `pixels` begins with its filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def refusal(store: ImageStore, name: str, sha256: str | None = None) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        store.read(name, sha256)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Writing


def test_what_is_written_is_read_back_and_its_hash_is_the_files(store: ImageStore) -> None:
    sha256 = store.write("run_0000/000001.png", noise())
    file = Path(store.root, "run_0000/000001.png")
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert np.array_equal(store.read("run_0000/000001.png", sha256), noise())
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_write_that_is_cut_off_leaves_the_old_file_and_no_temporary(store: ImageStore) -> None:
    sha256 = store.write("a.png", noise())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
    try:
        with pytest.raises(FlexyError, match=r"cannot write image .*a\.png: File too large"):
            store.write("a.png", noise(256))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.name for file in Path(store.root).iterdir()] == ["a.png"]
    store.read("a.png", sha256)


def test_a_name_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="it is a folder"):
        write_atomically(tmp_path / "taken", b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    """On a real disk of 64 KiB, mounted where only the test's own process sees it."""
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    small = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*alone, "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("nobody may mount a small disk here")
    program = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image
from resources.errors import BadInputError, FlexyError
from resources.images import ImageStore
store = ImageStore(sys.argv[1])
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
sha256 = store.write("0.png", picture)
try:
    for number in range(1, 9):
        store.write(f"{number}.png", picture)
except FlexyError as error:
    print(error)
store.read("0.png", sha256)
print(*[file.name for file in Path(sys.argv[1]).iterdir() if file.name.startswith(".")])
"""
    run = [*alone, "sh", "-c", f'{small} && exec "$@"', "sh", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, temporaries, *rest = done.stdout.split("\n")
    assert message.startswith(f"cannot write image {tmp_path}/")
    assert message.endswith("the disk is full: free some space and run again; completed work is kept")
    assert (temporaries, rest) == ("", [""])


def test_a_quota_that_is_used_up_is_a_full_disk() -> None:
    assert describe_os_error(OSError(errno.EDQUOT, "")) == describe_os_error(OSError(errno.ENOSPC, ""))


def test_a_url_is_a_root_too() -> None:
    store = ImageStore(f"memory://{uuid4().hex}")
    sha256 = store.write("run_0000/000001.png", noise())
    assert np.array_equal(store.read("run_0000/000001.png", sha256), noise())
    assert "cannot read" in refusal(store, "run_0000/000002.png")
    assert "leads outside" in refusal(store, "../000001.png")


# Paths


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/hostname", "..\\secret.png", "a\0b"])
def test_a_path_that_leads_outside_is_refused(store: ImageStore, path: str) -> None:
    put(store, "../secret.png", encoded(noise(), "PNG"))
    assert "leads outside the image root" in refusal(store, path)
    with pytest.raises(FlexyError, match="leads outside"):
        store.write(path, noise())


def test_a_link_that_leads_outside_is_refused(store: ImageStore, tmp_path: Path) -> None:
    put(store, "../other/secret.png", encoded(noise(), "PNG"))
    put(store, "inside.png", encoded(noise(), "PNG"))
    for link, target in [("link.png", "../other/secret.png"), ("folder", "../other"), ("loop.png", "loop.png")]:
        Path(store.root, link).symlink_to(target)
    for path in ("link.png", "folder/secret.png", "loop.png"):
        assert "leads outside" in refusal(store, path), path
    with pytest.raises(FlexyError, match="leads outside"):
        store.write("folder/new.png", noise())
    assert not (tmp_path / "other" / "new.png").exists()
    Path(store.root, "fine.png").symlink_to("inside.png")
    assert store.read("fine.png").mode == "RGB"


def test_a_root_that_is_itself_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to("disk")
    store = ImageStore(str(tmp_path / "images"))
    store.read("a/b.png", store.write("a/b.png", noise()))


@pytest.mark.parametrize("path", [None, "", ".", "./"])
def test_no_path_is_no_image(store: ImageStore, path: Any) -> None:
    assert refusal(store, path) == "no image path is recorded"
    (outcome,) = store.read_many([(path, None)])
    assert isinstance(outcome, UnreadableImageError)


def test_a_full_path_inside_the_root_is_that_image_and_one_outside_is_refused(tmp_path: Path) -> None:
    """As other programs write them: with the root before, under either of its names."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to("disk")
    store = ImageStore(str(tmp_path / "images"))
    store.write("run/a.png", noise())
    for folder in ("images", "disk"):
        assert np.array_equal(store.read(f"{tmp_path}/{folder}/run/a.png"), noise())
    put(store, "../disk2/a.png", encoded(noise(), "PNG"))
    Path(store.root, "out").symlink_to(tmp_path / "disk2")
    outside = ("disk2/a.png", "images/out/a.png", "images/../disk2/a.png", "images/run/../run/a.png")
    for path in outside:
        assert "leads outside the image root" in refusal(store, f"{tmp_path}/{path}"), path
        with pytest.raises(FlexyError, match="leads outside"):
            store.write(f"{tmp_path}/{path}", noise(seed=1))
    assert np.array_equal(ImageStore(str(tmp_path)).read("disk2/a.png"), noise())


def test_a_full_path_is_that_image_for_a_root_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for root in ("images", "../images"):
        store = ImageStore(root)
        store.write("a.png", noise())
        assert np.array_equal(store.read(str(Path(root, "a.png").resolve())), noise())
        assert "leads outside" in refusal(store, str(tmp_path / "a.png"))


def test_a_url_takes_no_full_paths() -> None:
    store = ImageStore(f"memory://{uuid4().hex}")
    store.write("a.png", noise())
    assert "leads outside the image root" in refusal(store, "/a.png")


# Several roots


def test_a_recorded_prefix_is_read_from_its_folder_the_longest_first_and_at_a_boundary(tmp_path: Path) -> None:
    """FlexyFace's one folder, as its host and as its container see it."""
    seen = [("/app/data", tmp_path / "data"), ("/app/data/images/bench", tmp_path / "bench")]
    store = ImageStore(str(tmp_path / "own"), [*seen, ("/home/ann/backend/data", tmp_path / "data")])
    for place, file in enumerate(("data/images/sweep/s.png", "bench/b.png", "data/images/benches/c.png", "own/a.png")):
        put(ImageStore(str(tmp_path)), file, encoded(noise(seed=place), "PNG"))
    paths = ("images/sweep/s.png", "images/bench/b.png", "images/benches/c.png")
    for place, path in enumerate(paths):
        assert np.array_equal(store.read(f"/app/data/{path}"), noise(seed=place))
    assert np.array_equal(store.read("/home/ann/backend/data/images/sweep/s.png"), noise(seed=0))
    assert np.array_equal(store.read("a.png"), noise(seed=3))
    for path in ("/app/data/../own/a.png", "/app/data2/a.png", "/app/own/a.png", "/app/data/x\\y", "/app/data/\0"):
        assert "leads outside the image root" in refusal(store, path), path
    assert refusal(store, "/app/data/") == "no image path is recorded"
    assert "No such file" in refusal(store, "/app/data//etc/hostname")
    assert refusal(store, "/elsewhere/a.png").endswith(": give its folder in FLEXY_IMAGE_ROOTS")


def test_nothing_is_written_through_a_prefix_and_its_folder_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    store = ImageStore(str(tmp_path / "own"), [("/app/data", tmp_path / "data")])
    with pytest.raises(BadInputError, match=r"the folder .*/data of /app/data does not exist: check FLEXY_IMAGE_ROOTS"):
        store.check()
    (tmp_path / "data").mkdir()
    store.check()
    with pytest.raises(FlexyError, match="leads outside"):
        store.write("/app/data/a.png", noise())
    assert list((tmp_path / "data").iterdir()) == []


def test_links_that_lead_out_are_followed_where_the_user_says_so_and_never_written_through(tmp_path: Path) -> None:
    put(ImageStore(str(tmp_path)), "disk/a.png", encoded(noise(), "PNG"))
    for folder in ("own", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "own" / "loop.png").symlink_to("loop.png")
    roots = str(tmp_path / "own"), [("/app/data", str(tmp_path / "data"))]
    store = ImageStore(*roots, follow_links=True)
    for path in ("link/a.png", "/app/data/link/a.png", f"{tmp_path}/own/link/a.png"):
        assert np.array_equal(store.read(path), noise())
        assert "leads outside" in refusal(ImageStore(*roots), path)
    for path in (f"{tmp_path}/disk/a.png", "../disk/a.png", "link/../a.png", "a\0b", "/app/data/a\0b"):
        assert "leads outside" in refusal(store, path), path
    assert "cannot read" in refusal(store, "loop.png")
    with pytest.raises(FlexyError, match="leads outside"):
        store.write("link/b.png", noise())


# The root


def complaint(root: str) -> str:
    with pytest.raises(BadInputError) as caught:
        ImageStore(root).check()
    message = str(caught.value)
    assert "\n" not in message and "opensesame" not in message and "FLEXY_IMAGES" in message
    return message


def test_a_root_that_is_there_passes_and_one_that_is_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path)
    for root in (str(tmp_path), str(tmp_path / "link"), f"file://{tmp_path}"):
        ImageStore(root).check()
    nowhere = [str(tmp_path / name) for name in ("nowhere", "file", "file/x", "gone", "a\0b")]
    for root in (*nowhere, f"file://{tmp_path}/nowhere", f"memory://{uuid4().hex}"):
        assert f"the image root {root} does not exist: set FLEXY_IMAGES to the folder of the images" == complaint(root)
    assert not (tmp_path / "nowhere").exists()


def test_a_root_that_is_made_by_its_first_image_passes_from_then_on() -> None:
    store = ImageStore(f"memory://{uuid4().hex}")
    store.write("a.png", noise())
    store.check()


def test_a_url_that_cannot_be_used_is_named_without_its_password() -> None:
    assert "nonsense://u:***@h/x cannot be used: Protocol not known" in complaint("nonsense://u:opensesame@h/x")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers here
        where = f"127.0.0.1:{held.getsockname()[1]}/x"
        assert f"ftp://u:***@{where} cannot be used: [Errno 111]" in complaint(f"ftp://u:opensesame@{where}")


def test_what_is_said_of_an_image_holds_no_password() -> None:
    assert "root memory://u:***@h/x" in refusal(ImageStore("memory://u:opensesame@h/x"), "../a.png")


# Reading


def test_what_is_missing_or_no_picture_is_refused_with_the_reason(store: ImageStore) -> None:
    put(store, "folder/x", b"")
    assert "No such file" in refusal(store, "missing.png")
    assert "it is a folder and not a regular file" in refusal(store, "folder")
    assert "cannot decode image" in refusal(store, "folder/x")
    assert "cannot decode image" in refusal(store, put(store, "text.png", b"<html>404</html>"))


def test_a_picture_that_was_changed_is_noticed(store: ImageStore) -> None:
    sha256 = store.write("a.png", noise(seed=1))
    Path(store.root, "a.png").write_bytes(encoded(noise(seed=2), "PNG"))
    assert "is not the one recorded" in refusal(store, "a.png", sha256)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "link to a pipe", "3 GB"])
def test_what_is_no_regular_file_or_huge_is_refused_before_it_is_opened(
    store: ImageStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    file = Path(store.root, "odd.png")
    file.parent.mkdir()
    if kind == "3 GB":
        file.touch()
        os.truncate(file, 3 * 10**9)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("images/odd.png")
    elif kind == "device":
        if os.geteuid():
            pytest.skip("only root makes devices")
        os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file.parent / "pipe" if "link" in kind else file)
        if "link" in kind:
            file.symlink_to("pipe")
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    reason = r"it has 3\.0 GB" if kind == "3 GB" else f"it is a {kind.removeprefix('link to a ')} and not a regular"
    for look in (store.read, store.verify, lambda path: store.verify(path, "0" * 64)):
        with pytest.raises(UnreadableImageError, match=reason):
            look("odd.png")
    assert time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000


def test_text_and_profiles_of_some_megabytes_are_read_and_no_more(store: ImageStore) -> None:
    for size in (5_000_000, 17_000_000):
        packed = zlib.compress(bytes(size), 1)
        for chunk in ((b"zTXt", b"workflow\0\0" + packed), (b"iCCP", b"profile\0\0" + packed)):
            put(store, "chunk.png", png(1, 1, 8, 2, b"\0\xff\0\0", chunk))
            if size < MAX_CHUNK_BYTES:
                assert store.read("chunk.png").getpixel((0, 0)) == RED
            else:
                with pytest.raises(UnreadableImageError, match="cannot decode"):
                    store.read("chunk.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "of the format heic, which is not read: save it as PNG"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer: fetch it with git lfs pull"),
        (b"", "an empty file"),
        (b"no picture", r"of no known image format \(it begins with 6e 6f 20 70"),
    ],
)
def test_the_reason_names_the_format_and_no_object(store: ImageStore, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=f"it is {reason}"):
        store.read(put(store, "odd.png", content))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_picture_is_refused(store: ImageStore, format: str) -> None:
    content = encoded(noise(), format)
    for share in (0.1, 0.5, 0.9):
        refusal(store, put(store, "cut", content[: int(share * len(content))]))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "DDS"])
def test_a_damaged_picture_is_rgb_or_refused_and_nothing_else(store: ImageStore, format: str) -> None:
    draw = random.Random(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    content = encoded(noise(24), format, **({"exif": exif} if format in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(min(len(damaged), 400))] = draw.randrange(256)
        put(store, "damaged", damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (outcome,) = store.read_many([("damaged", None)])
        assert isinstance(outcome, UnreadableImageError) or outcome.mode == "RGB"


@pytest.mark.parametrize("side", [8_100, 60_000])
def test_a_small_file_that_claims_a_huge_picture_is_refused(store: ImageStore, side: int) -> None:
    assert side**2 > MAX_PIXELS
    content = png(side, side, 8, 2, bytes(100))
    assert len(content) < 200
    refusal(store, put(store, "bomb.png", content))


def test_transparency_is_laid_on_white(store: ImageStore) -> None:
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    picture.putpixel((2, 0), (0, 0, 0, 51))
    read = store.read(put(store, "alpha.png", encoded(picture, "PNG")))
    assert list(read.get_flattened_data()) == [RED, (255, 255, 255), (204, 204, 204)]

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    read = store.read(put(store, "palette.png", encoded(palette, "PNG", transparency=1)))
    assert list(read.get_flattened_data()) == [RED, (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBX", "CMYK", "YCbCr", "RGBA"])
def test_every_kind_of_picture_is_read_as_rgb(store: ImageStore, mode: str) -> None:
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "RGBX": "TIFF"}.get(mode, "PNG")
    picture = Image.new("RGB", (8, 8), "white").convert(mode)
    read = store.read(put(store, "picture", encoded(picture, format)))
    assert (read.mode, read.size) == ("RGB", (8, 8))
    assert min(read.getpixel((4, 4))) > 250


def test_sixteen_bits_are_scaled_and_not_clipped(store: ImageStore) -> None:
    values = [0, 256, 32768, 65535]
    row = b"\0" + struct.pack(">4H", *values)
    expected = [(v >> 8,) * 3 for v in values]
    assert list(store.read(put(store, "16.png", png(4, 1, 16, 0, row))).get_flattened_data()) == expected
    clear = png(4, 1, 16, 0, row, (b"tRNS", struct.pack(">H", 7)))
    assert store.read(put(store, "16t.png", clear)).mode == "RGB"
    tiff = encoded(Image.fromarray(np.array([values], np.uint16)), "TIFF")
    assert list(store.read(put(store, "16.tif", tiff)).get_flattened_data()) == expected


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused_and_not_guessed(store: ImageStore, dtype: type) -> None:
    tiff = encoded(Image.fromarray(np.full((4, 4), 0.5).astype(dtype)), "TIFF")
    assert "32-bit" in refusal(store, put(store, "32.tif", tiff))


def test_a_photograph_taken_sideways_is_turned(store: ImageStore) -> None:
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture's left is its top
    read = store.read(put(store, "turned.jpg", encoded(picture, "JPEG", exif=exif, quality=100, subsampling=0)))
    assert read.size == (16, 32)
    assert read.getpixel((8, 2))[0] > 200 > 50 > read.getpixel((8, 30))[0]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_read(store: ImageStore, format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert store.read(put(store, "moving", content)).getpixel((4, 4)) == RED


def test_many_are_read_in_order_with_an_error_in_the_place_of_a_broken_one(store: ImageStore) -> None:
    files: list[tuple[str, str | None]] = [(f"{n}.png", store.write(f"{n}.png", noise(8, n))) for n in range(20)]
    files[7] = (put(store, "broken.png", b"broken"), None)
    for number, outcome in enumerate(store.read_many(files)):
        if number == 7:
            assert isinstance(outcome, UnreadableImageError) and "broken.png" in str(outcome)
        else:
            assert np.array_equal(outcome, noise(8, number))
