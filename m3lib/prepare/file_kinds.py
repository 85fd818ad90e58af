"""What a file is that can't be opened as a photo, and what to do about it, from its first bytes."""

import re

FIRST = 1024  # bytes that are looked at
CONVERT = "not a photo in a known format: convert it to JPEG or PNG"
DOWNLOAD = "not a photo: download it again"
DAMAGED = "damaged at its beginning: download it again"
UNPACK = "not a photo: unpack it"
FRAME = "not a photo: save one of its frames as JPEG or PNG"

# Patterns of the first bytes; the first that matches counts. HEIC is not read because damaged files crash its decoder,
# and with it the process that reads them.
KINDS = (
    (rb"\Z", "an empty file", DOWNLOAD),
    (rb"\0+\Z", "a file that begins with zeros only", DOWNLOAD),
    (rb"\xff\xd8\xff", "a JPEG", DAMAGED),
    (rb"\x89PNG", "a PNG", DAMAGED),
    (rb"GIF8", "a GIF", DAMAGED),
    (rb"RIFF.{4}WEBP", "a WebP photo", DAMAGED),
    (rb".{4}ftypavi[fs]", "an AVIF photo", DAMAGED),
    (rb".{4}ftyp(he[iv]|mif|msf)", "an HEIC photo", CONVERT),
    (rb".{4}ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|II\*\0.{4}CR", "a camera's raw file", CONVERT),
    (rb".{4}ftyp|RIFF.{4}AVI|\x1a\x45\xdf\xa3", "a video", FRAME),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF", "of a kind that can't be read: convert it to JPEG or PNG"),
    (rb"\xff\x0a|\0{3}\x0cJXL ", "a JPEG XL photo", CONVERT),
    (rb"\0{3}\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 photo", CONVERT),
    (rb"%PDF", "a PDF", CONVERT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", CONVERT),
    (rb"8BP[SB]", "a Photoshop file", CONVERT),
    (rb"gimp xcf", "a GIMP file", CONVERT),
    (rb"\x76\x2f\x31\x01|#\?RADIANCE", "an HDR image", CONVERT),
    (rb"\0\0\x01\0", "an icon", CONVERT),
    (rb"PK\x03\x04", "a ZIP archive", UNPACK),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar", "an archive", UNPACK),
    (rb"\0\x05\x16\x07", "what macOS writes beside a photo", "not a photo: use the file without `._` in its name"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "not a photo: run `git lfs pull` where it comes from"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)", "an HTML page", DOWNLOAD),
    (rb"(?i)(\xef\xbb\xbf)?\s*<.*?svg\b", "an SVG drawing", CONVERT),
    (rb"[\t\n\f\r\x20-\x7e\x80-\xff]+\Z", "a text file", DOWNLOAD),
)


def describe(first: bytes) -> str:
    """Return the end of a sentence that begins with a file's name; first: its FIRST bytes."""
    for pattern, kind, advice in KINDS:
        if re.match(pattern, first, re.DOTALL):
            return f"{kind}, {advice}"
    return CONVERT
