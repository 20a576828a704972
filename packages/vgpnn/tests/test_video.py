"""Video files: round trips, colour, and one line for everything that cannot be read or written."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from paperkit import UserError, images
from PIL import Image
from vgpnn import clips, video
from vgpnn.video import Clip, pad_even, read, to_frames, to_unit, upright, write


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def chart(frames: int = 4, height: int = 64, width: int = 96) -> torch.Tensor:
    """A grey ramp with patches of colour, smooth enough for colour at half resolution."""
    x = torch.linspace(0, 255, width).expand(frames, 3, height, width).clone()
    for k, colour in enumerate(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (200, 120, 60)]
    ):
        x[:, :, 32:, 16 * k : 16 * k + 16] = torch.tensor(colour, dtype=torch.float32)[:, None, None]
    return x.round().to(torch.uint8)


def inner(x: torch.Tensor) -> torch.Tensor:
    """Without the borders of the patches, where half resolution must mix colours."""
    keep = torch.zeros(64, 96, dtype=torch.bool)
    keep[2:24] = True
    for k in range(6):
        keep[38:58, 16 * k + 6 : 16 * k + 10] = True
    return x[..., keep].int()


@pytest.mark.parametrize(("name", "worst"), [("x.mp4", 3), ("x.webm", 3), ("x.mkv", 0), ("frames", 0)])
def test_colours_come_back(name, worst):
    x = chart()
    clip = read(write(name, x, Fraction(25), quality=4))
    assert clip.shape == (4, 64, 96)
    assert clip.rate == (25 if name != "frames" else 10)
    assert clip.notices == ()
    apart = inner(clip.frames) - inner(x)
    assert int(apart.abs().max()) <= worst
    assert float(apart.float().mean().abs()) <= 0.5


def test_high_frames_are_tagged_bt709():
    x = torch.tensor([200, 60, 30], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 720, 64).contiguous()
    clip = read(write("x.mp4", x, quality=4))
    with av.open("x.mp4") as container:
        assert container.streams.video[0].codec_context.colorspace == 1
    assert int((clip.frames.int() - x.int()).abs().max()) <= 3


def test_an_untagged_file_is_bt601_below_720_rows():
    x = torch.tensor([200, 60, 30], dtype=torch.uint8)[None, :, None, None].expand(3, 3, 64, 64).contiguous()
    with av.open("x.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in x:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert int((read("x.mp4").frames.int() - x.int()).abs().max()) <= 4


def test_odd_sizes_are_padded_and_the_gif_keeps_its_rate():
    x = chart(4, 65, 97)
    assert read(write("x.mp4", x)).shape == (4, 66, 98)
    assert torch.equal(pad_even(x)[..., :65, :97], x)
    assert torch.equal(pad_even(x)[..., 65, :97], x[..., 64, :])
    assert read(write("x.mkv", x)).shape == (4, 65, 97)
    x[:, :, :8, :8] = 60 * torch.arange(4, dtype=torch.uint8)[:, None, None, None]  # equal ones become one
    clip = read(write("x.gif", x, Fraction(10)))
    assert clip.shape == (4, 65, 97)
    assert clip.rate == 10
    assert clip.notices == ()


def test_an_animated_png_is_lossless():
    x = clips.stand_in(4, 24, 32)
    write("x.png", x, Fraction(10))
    with Image.open("x.png") as picture:
        assert picture.n_frames == 4
        picture.seek(3)
        assert np.array_equal(np.array(picture.convert("RGB")), x[3].permute(1, 2, 0).numpy())


def test_values_are_rounded_and_clipped():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(3, -1, -1, -1)
    assert to_frames(x)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    assert torch.equal(to_frames(to_unit(frames)), frames)


# ---- what files are like


def test_a_rotated_file_is_upright():
    write("x.mp4", chart(3))
    data = bytearray(Path("x.mp4").read_bytes())
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    places = [i for i in range(len(data)) if data[i : i + 36] == matrix]
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)  # 90 degrees with the clock
    data[places[-1] : places[-1] + 36] = turned
    Path("turned.mp4").write_bytes(data)
    straight, clip = read("x.mp4").frames, read("turned.mp4")
    assert clip.shape == (3, 96, 64)
    assert torch.equal(clip.frames, straight.rot90(-1, (2, 3)))


def test_upright_turns_against_the_clock():
    frame = np.arange(12).reshape(2, 2, 3).astype(np.uint8)
    assert np.array_equal(upright(frame, 90), np.rot90(frame))
    assert np.array_equal(upright(frame, -90), np.rot90(frame, 3))
    assert np.array_equal(upright(frame, 0), frame)


def test_transparency_and_sound_are_dropped_with_a_notice():
    with av.open("x.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgra"
        sound = container.add_stream("pcm_s16le", rate=8000)
        sound.layout = "mono"
        for _ in range(3):
            pixels = np.full((16, 16, 4), 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgra")))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        tone.sample_rate = 8000
        container.mux(sound.encode(tone))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    clip = read("x.mkv")
    assert clip.notices == ("x.mkv: transparency was dropped", "x.mkv: sound was dropped")
    assert clip.shape == (3, 16, 16)
    assert int(clip.frames.min()) == int(clip.frames.max()) == 100


def test_a_varying_rate_keeps_every_frame_once():
    with av.open("x.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, time in enumerate((0, 1, 2, 8, 9)):
            pixels = np.full((16, 16, 3), 40 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = read("x.mkv")
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]
    assert float(clip.rate) == pytest.approx(4 / 0.9, rel=1e-2)
    assert "varies" in clip.notices[0]


def test_full_range_and_folders_of_numbered_frames():
    for number in (1, 2, 10):
        images.write(f"f/{number}.png", torch.full((3, 8, 9), number, dtype=torch.uint8))
    clip = read("f")
    assert clip.frames[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert clip.rate == 10


# ---- what cannot be read or written: one line


def damaged() -> str:
    write("whole.mp4", chart())
    Path("x.mp4").write_bytes(Path("whole.mp4").read_bytes()[:300])
    return "x.mp4"


def sound_only() -> str:
    with av.open("x.mkv", "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        sound.layout = "mono"
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        tone.sample_rate = 8000
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    return "x.mkv"


def text() -> str:
    Path("x.mp4").write_text("no video")
    return "x.mp4"


def empty() -> str:
    Path("x.mp4").touch()
    return "x.mp4"


def of_two_sizes() -> str:
    images.write("two/1.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    images.write("two/2.png", torch.zeros(3, 8, 9, dtype=torch.uint8))
    return "two"


def without_images() -> str:
    Path("bare").mkdir()
    return "bare"


@pytest.mark.parametrize(
    "make", [damaged, sound_only, text, empty, of_two_sizes, without_images, lambda: "nowhere"]
)
def test_bad_files_are_one_line(make):
    with pytest.raises(UserError) as caught:
        read(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "shape"), [("x.mp3", (2, 3, 8, 8)), ("x.mp4", (0, 3, 8, 8))])
def test_bad_writing_is_one_line_and_leaves_nothing(name, shape):
    with pytest.raises(UserError):
        write(name, torch.zeros(shape, dtype=torch.uint8))
    assert list(Path().iterdir()) == []


def test_a_missing_codec_is_named(monkeypatch):
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(UserError, match="libx264"):
        write("x.mp4", chart())


def test_a_full_disk_leaves_no_broken_file(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paperkit.run.files.os.fsync", full)
    for name in ("x.mp4", "x.gif", "frames"):
        with pytest.raises(UserError, match="no space"):
            write(name, chart())
    assert list(Path().iterdir()) == []


# ---- clips by name


def test_the_stand_in_clip():
    x = clips.stand_in()
    assert x.shape == (16, 3, 72, 128)
    steps = x.float().diff(dim=0).abs().mean((1, 2, 3))
    assert float(steps.min()) > 2
    assert torch.equal(clips.open_clip("stand-in").frames, x)


def test_a_part_of_a_clip():
    clip = Clip(clips.stand_in(), Fraction(5), "c")
    part = clips.prepare(clip, 4, 2, 36)
    assert part.shape == (4, 36, 64)
    assert part.rate == 5
    assert torch.equal(clips.prepare(clip, 0, 14).frames, clip.frames[14:])
    with pytest.raises(UserError, match="16 frames"):
        clips.prepare(clip, 3, 16)


def test_clips_by_name(monkeypatch, tmp_path):
    (tmp_path / "data/videos/benchmark/hpvaegan").mkdir(parents=True)
    write("data/videos/benchmark/hpvaegan/fish_gt.mp4", chart())
    write("data/videos/benchmark/hpvaegan/fish_ours0.mp4", chart(3))
    write("data/videos/airballoons/a", chart(2))
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "data"))
    assert clips.open_clip("fish").shape[0] == 4
    assert clips.open_clip("fish_ours0").shape[0] == 3
    with pytest.raises(UserError, match="no clip bird"):
        clips.open_clip("bird")
    with pytest.raises(UserError, match="no clip given"):
        clips.open_clip("")
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path))
    with pytest.raises(UserError, match="PAPERKIT_DATA"):
        clips.open_clip("fish")


def test_every_kind_is_a_known_ending():
    assert set(video._KINDS) <= set(video.SUFFIXES)
