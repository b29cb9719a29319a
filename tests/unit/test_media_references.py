"""Media that name another file or an address: neither is opened, which is watched from outside of the decoders."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest
from broken_media import clip
from conftest import REPOSITORY

from framelora.cells.store import Store
from framelora.dataset.gate import inspect
from framelora.dataset.tokens import WORDS
from framelora.media.decode import decode_image, decode_video
from framelora.media.frames import read_frames
from framelora.media.probe import DEMUXERS, IMAGE_FORMATS, NO_FILE_BEYOND, Unreadable, probe_video
from framelora.media.shots import Cutting
from framelora.params import load_params

pytestmark = pytest.mark.slow


@dataclass
class Bait:
    """A file outside of the data root and an address; both note who comes.

    The file is a FIFO: whoever opens it waits until it is opened for writing too, so that nobody is missed.
    """

    root: Path
    file: Path
    server: socket.socket
    opened: bool = False
    called: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}/secret.mp4"

    def watch(self) -> None:
        while not self.over.is_set():
            self.look()

    def look(self) -> None:
        with contextlib.suppress(OSError):  # ENXIO: nobody has it open
            os.close(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
            self.opened = True
        if select.select([self.server], [], [], 0.01)[0]:
            self.server.accept()[0].close()
            self.called = True

    def taken(self) -> bool:
        """Whether anybody came since this was asked last."""
        self.look()
        taken, self.opened, self.called = self.opened or self.called, False, False
        return taken


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    os.mkfifo(outside / "secret.mp4")
    (root / "beside").symlink_to(outside)
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Bait(root, outside / "secret.mp4", server)
        thread = threading.Thread(target=made.watch)
        thread.start()
        yield made
        made.over.set()
        thread.join()


def concat_file(bait: Bait) -> bytes:
    return b"ffconcat version 1.0\nfile beside/secret.mp4\n"


def concat_address(bait: Bait) -> bytes:
    return f"ffconcat version 1.0\nfile {bait.address}\n".encode()


def playlist_file(bait: Bait) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{bait.file}\n#EXT-X-ENDLIST\n".encode()


def playlist_address(bait: Bait) -> bytes:
    return playlist_file(bait).replace(str(bait.file).encode(), bait.address.encode())


def external_track(bait: Bait) -> bytes:
    """An mp4 whose samples are said to lie in another file: an alias (QuickTime File Format, `dref`) with its path."""
    data = clip(bait.root.parent / "whole.mp4").read_bytes()
    path = str(bait.file).encode()
    path += bytes(len(path) % 2)
    alias = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">hh", -1, -1) + bytes(16)
    alias += struct.pack(">hh", 2, len(path)) + path + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    old = data.index(b"url \0\0\0\1") - 4
    changed = data[:old] + entry + data[old + 12 :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):  # the index is behind the frames: they stay
        place = data.index(box) - 4
        (length,) = struct.unpack(">I", data[place : place + 4])
        changed = changed[:place] + struct.pack(">I", length + len(entry) - 12) + changed[place + 4 :]
    return changed


# Each with what a decoder needs to be told to follow it; nothing, where its own probing is enough.
PROTOCOLS = {"protocol_whitelist": "file,http,tcp,crypto,data"}
REFERENCES: dict[str, tuple[Callable[[Bait], bytes], str | None, dict[str, str]]] = {
    "ffconcat list of a file": (concat_file, None, {}),
    "ffconcat list of an address": (concat_address, "concat", {"safe": "0", **PROTOCOLS}),
    "playlist of a file": (playlist_file, "hls", {"extension_picky": "0", **PROTOCOLS}),
    "playlist of an address": (playlist_address, "hls", {"extension_picky": "0", **PROTOCOLS}),
    "track in another file": (external_track, None, {"enable_drefs": "1", "use_absolute_path": "1"}),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_the_bait_is_taken_by_a_decoder_that_follows_references(bait: Bait, case: str) -> None:
    """Or the tests below would show nothing."""
    make, demuxer, options = REFERENCES[case]
    path = bait.root / "a.mp4"
    path.write_bytes(make(bait))
    with contextlib.suppress(av.FFmpegError), av.open(str(path), format=demuxer, options=options) as container:
        next(container.decode(video=0), None)
    assert bait.taken()


@pytest.mark.parametrize("case", REFERENCES)
def test_nothing_that_a_file_names_is_opened(bait: Bait, case: str) -> None:
    """Not by the gate, not by the decoder, under no name."""
    make, _, _ = REFERENCES[case]
    data = make(bait)
    paths = [bait.root / f"a{suffix}" for suffix in (*DEMUXERS, *IMAGE_FORMATS)]
    for path in paths:
        path.write_bytes(data)
    params = load_params(REPOSITORY / "params.yaml")
    inputs = inspect(
        bait.root,
        Store(bait.root.parent / "cells"),
        params.data.model_copy(update={"images": True}),
        params.captions,
        params.extract.model_copy(update={"on_error": "skip"}),
        params.pair,
        WORDS,
    )
    assert not bait.taken()
    # mp4 and mov hold a whole video beside the track that is elsewhere; the rest is no medium at all.
    assert {source.path for source in inputs.sources} <= ({"a.mp4", "a.mov"} if make is external_track else set())
    facts = probe_video(clip(bait.root.parent / "sound.mp4"))
    decoding = {"target_fps": 8.0, "buckets": ["96x64"], "cutting": Cutting(), "limits": NO_FILE_BEYOND}
    for path in paths:
        with contextlib.suppress(Unreadable):
            if path.suffix in IMAGE_FORMATS:
                decode_image(path, ["96x64"], NO_FILE_BEYOND)
            else:
                list(decode_video(path, **decoding))  # type: ignore[arg-type]
        if path.suffix in DEMUXERS:
            with contextlib.suppress(Unreadable):  # the decoder's own process, which the probe shields
                list(read_frames(path, facts, (96, 64), NO_FILE_BEYOND))
        assert not bait.taken(), path.name
