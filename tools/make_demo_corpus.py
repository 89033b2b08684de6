#!/usr/bin/env python3
"""Make the corpus of the demo model from the Debian package that carries the novels.

apt-get download r-cran-janeaustenr
python tools/make_demo_corpus.py r-cran-janeaustenr_1.0.0-1_all.deb
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

DEFAULT_CORPUS = Path(__file__).resolve().parent / "demo_corpus" / "austen.txt.xz"

# Name in the R package -> title, in the order of publication.
NOVELS = {
    "sensesensibility": "Sense and Sensibility",
    "prideprejudice": "Pride and Prejudice",
    "mansfieldpark": "Mansfield Park",
    "emma": "Emma",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
}


class RReader:
    """Reader of R's XDR serialisation (versions 2 and 3), for the few types that data files use."""

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialisation")
        self.data, self.pos, self.symbols = data, 2, []
        version, _, _ = self.integer(), self.integer(), self.integer()
        if version == 3:
            self.string()  # the name of the native encoding

    def integer(self) -> int:
        """Read one big-endian 32-bit integer."""
        self.pos += 4
        return struct.unpack_from(">i", self.data, self.pos - 4)[0]

    def string(self) -> str:
        """Read a length and as many bytes; a missing value (length -1) is an empty string."""
        size = max(self.integer(), 0)
        self.pos += size
        return self.data[self.pos - size : self.pos].decode("utf-8")

    def item(self) -> Any:
        """Read one object: a vector becomes a list, or (list, attributes) if it has attributes."""
        flags = self.integer()
        kind = flags & 0xFF
        if kind == 254:  # NULL
            return None
        if kind == 255:  # a symbol seen before
            return self.symbols[(flags >> 8 or self.integer()) - 1]
        if kind == 1:  # a symbol
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == 2:  # a pair list, here always with tags
            return self.pairs(flags)
        if kind == 9:
            return self.string()
        if kind not in (10, 13, 16, 19):  # logical, integer, character, list
            raise ValueError(f"R object type {kind} is not supported")
        simple = kind in (10, 13)
        values = [self.integer() if simple else self.item() for _ in range(self.integer())]
        return (values, self.item()) if flags & 0x200 else values

    def pairs(self, flags: int) -> dict[str, Any]:
        """Read a pair list, whose first node's flags are given, as a dictionary."""
        if flags & 0x200:
            self.item()  # attributes of the node itself
        tag = self.item() if flags & 0x400 else ""
        pairs = {tag: self.item()}
        return pairs | (self.item() or {})


def deb_files(deb: Path, names: tuple[str, ...]) -> list[bytes]:
    """Return the contents of the files of a Debian package whose paths end in ``names``."""
    raw = deb.read_bytes()
    if raw[:8] != b"!<arch>\n":
        raise ValueError(f"{deb} is not a Debian package")
    pos = 8
    while pos + 60 <= len(raw):
        name, size = raw[pos : pos + 16].decode().strip(), int(raw[pos + 48 : pos + 58])
        pos += 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[pos : pos + size])) as tar:
                found = {end: m for m in tar.getmembers() for end in names if m.name.endswith(end)}
                missing = [end for end in names if end not in found]
                if missing:
                    raise ValueError(f"{deb} has no {', '.join(missing)}")
                return [tar.extractfile(found[end]).read() for end in names]  # type: ignore[union-attr]
        pos += size + size % 2
    raise ValueError(f"{deb} has no data archive")


def read_deb(deb: Path) -> dict[str, list[str]]:
    """Return the text lines of each novel, by its name in the R package."""
    folder = "janeaustenr/data/Rdata"
    index, database = deb_files(deb, (f"{folder}.rdx", f"{folder}.rdb"))
    (variables, *_), _ = RReader(gzip.decompress(index)).item()
    places, attributes = variables
    novels = {}
    for name, (start, size) in zip(attributes["names"], places, strict=True):
        # Each chunk begins with its uncompressed length in four bytes.
        novels[name] = RReader(zlib.decompress(database[start + 4 : start + size])).item()
    return novels


def clean(lines: list[str]) -> list[list[str]]:
    """Re-flow the lines of one novel into chapters of paragraphs, without what is not the novel's text."""
    chapters: list[list[str]] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        text = " ".join(block.replace("_", "").replace("\u00a3", "L").split())
        if re.fullmatch(r"chapter [0-9ivxlc]+\.?", text, re.IGNORECASE):
            chapters.append([])
        elif re.fullmatch(r"finis|the end|a note on the text", text, re.IGNORECASE):
            break
        elif chapters and text and not re.match(r"[\[*]|\(End of volume|volume [ivx]+$", text, re.IGNORECASE):
            chapters[-1].append(text.replace("*", ""))
    return [chapter for chapter in chapters if chapter]


def write_corpus(deb: Path, path: Path) -> None:
    """Write the corpus file: ``# title`` and ``## Chapter n`` lines, every other line one paragraph."""
    novels = read_deb(deb)
    if missing := NOVELS.keys() - novels.keys():
        raise ValueError(f"{deb} has no {', '.join(sorted(missing))}")
    out = []
    for name, title in NOVELS.items():
        out.append(f"# {title}")
        for number, chapter in enumerate(clean(novels[name]), 1):
            out += [f"## Chapter {number}", *chapter]
    text = "\n".join(out) + "\n"
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deb", type=Path, metavar="DEB", help="the package r-cran-janeaustenr")
    parser.add_argument("--output", type=Path, default=DEFAULT_CORPUS, metavar="FILE", help="the corpus (.txt.xz)")
    args = parser.parse_args()
    if not args.deb.is_file():
        parser.error(f"no such file: {args.deb}")
    try:
        write_corpus(args.deb, args.output)
    except (ValueError, OSError, tarfile.TarError, zlib.error) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
