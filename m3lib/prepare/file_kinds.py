"""What a file is that can't be opened as a photo, and what to do about it, from its first bytes."""

import re

FIRST = 1024  # bytes that are looked at
CONVERT = "not a photo in a known format: convert it to JPEG or PNG"
DOWNLOAD = "not a photo: download it again"

# Patterns of the first bytes; the first that matches counts. HEIC is not read because damaged files crash its decoder,
# and with it the process that reads them.
KINDS = (
    (rb"\Z", f"an empty file, {DOWNLOAD}"),
    (rb"\0+\Z", f"a file that begins with zeros only, {DOWNLOAD}"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF.{4}WEBP|.{4}ftypavi[fs]", "damaged at its beginning: download it again"),
    (rb".{4}ftyp(he[iv]|mif|msf)", f"an HEIC photo, {CONVERT}"),
    (rb".{4}ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|II\*\0.{4}CR", f"a camera's raw file, {CONVERT}"),
    (rb".{4}ftyp|RIFF.{4}AVI|\x1a\x45\xdf\xa3", "a video, not a photo: save one of its frames as JPEG or PNG"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF of a kind that can't be read: convert it to JPEG or PNG"),
    (rb"%PDF|%!PS|8BPS", f"a PDF, PostScript or Photoshop file, {CONVERT}"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar", "an archive, not a photo: unpack it"),
    (rb"\0\x05\x16\x07", "what macOS writes beside a photo: use the file without `._` in its name"),
    (rb"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull` where it comes from"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)", f"an HTML page, {DOWNLOAD}"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<.*?svg\b", f"an SVG drawing, {CONVERT}"),
    (rb"[\t\n\f\r\x20-\x7e\x80-\xff]+\Z", f"a text file, {DOWNLOAD}"),
)


def describe(first: bytes) -> str:
    """Return the end of a sentence that begins with a file's name; first: its FIRST bytes."""
    return next((words for pattern, words in KINDS if re.match(pattern, first, re.DOTALL)), CONVERT)
