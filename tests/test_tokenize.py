"""Video to tokens: comma's transform, the encoder, and what cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("av")
import av
import checkpoints

from vqcomp import seeing
from vqcomp.cli import run
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DependencyError, InputError, ModelError
from vqcomp.world import video
from vqcomp.world.decoders import load_decoder, load_encoder

CPU = Compute("cpu", 1, 1, 4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.bin"
    torch.save(checkpoints.comma_encoder(), path)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven frames of 700 x 420, 20 a second, without loss."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write(path, pictures(11, 420, 700))
    return path


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Smooth pictures that move."""
    y, x, t, c = np.ogrid[:height, :width, :count, :3]
    waves = np.sin(x / (20 + 7 * c) + t / 3) + np.cos(y / (30 - 5 * c) - t / 5)
    return np.moveaxis(127 + 60 * waves, 2, 0).astype(np.uint8)


def write(path: Path, frames: np.ndarray, fps: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))


# --- comma's transform


def test_comma_cuts_638_x_319_at_645_416_out_of_its_cameras_picture():
    at = np.stack(np.broadcast_arrays(np.arange(1208)[:, None], np.arange(1928)[None], 0), -1)
    piece = video.comma_crop(at)
    assert piece.shape == (319, 638, 3)
    assert piece[0, 0].tolist() == [416, 645, 0] and piece[-1, -1].tolist() == [734, 1282, 0]


def test_resize_by_hand():
    # Four columns to two, three rows to two: places 0.5 and 2.5 of the row, 0.25 and 1.75 of the column.
    image = np.array([[0, 10, 20, 30], [100, 110, 120, 130], [200, 210, 220, 230]], np.uint8)[..., None]
    assert video.resize(image, 2, 2)[..., 0].tolist() == [[30, 50], [180, 200]]


def test_resize_does_not_smooth():
    # A lone bright column that lies between two places that are looked at is not seen: nothing is averaged.
    image = np.zeros((8, 64, 1), np.uint8)
    image[:, 10] = 255
    assert video.resize(image, 8, 8).max() == 0  # it looks at columns 3.5, 11.5, ...: 3 and 4, 11 and 12
    image[:, 11] = 255
    assert video.resize(image, 8, 8)[0, 1, 0] == 128


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_resize_is_bilinear_to_within_a_level(height, width, high, wide, seed):
    image = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)

    def matrix(inside: int, outside: int) -> np.ndarray:
        at = np.clip((np.arange(outside) + 0.5) * inside / outside - 0.5, 0, inside - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(inside)))

    exact = np.einsum("yh,xw,hwc->yxc", matrix(height, high), matrix(width, wide), image)
    assert np.abs(video.resize(image, high, wide) - exact).max() < 1.1


def test_resize_gives_opencvs_bytes():
    cv2 = pytest.importorskip("cv2")
    image = np.random.RandomState(0).randint(0, 256, (319, 638, 3)).astype(np.uint8)
    for height, width in ((319, 638), (100, 77), (3, 5)):
        part = np.ascontiguousarray(image[:height, :width])
        assert np.array_equal(video.resize(part, 128, 256), cv2.resize(part, (256, 128)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 300))
def test_the_centre_crop_is_the_largest_piece_of_its_shape(height, width):
    piece = video.centre_crop(np.zeros((height, width, 3), np.uint8))
    assert piece.shape[1] == 2 * piece.shape[0]
    assert piece.shape[0] == height or piece.shape[1] in (width, width - 1)


def test_a_picture_smaller_than_commas_piece_is_refused():
    with pytest.raises(InputError, match=r"640 x 360 is too small.*--crop centre"):
        video.comma_crop(np.zeros((360, 640, 3), np.uint8))


# --- tokens


def test_tokens_are_those_of_the_encoder_frame_by_frame(encoder, film, tmp_path):
    shape = seeing.tokenize(film, tmp_path / "tokens.npy", encoder, compute=CPU)
    ids = np.load(tmp_path / "tokens.npy")
    assert ids.shape == shape == (11, 8, 16) and ids.dtype == np.int16
    frames = np.stack([video.resize(video.comma_crop(f), 128, 256) for f in pictures(11, 420, 700)])
    assert (load_encoder(encoder, CPU).encode(frames) == ids).mean() > 0.999  # sums of floats may differ with the batch
    assert len(np.unique(ids)) > 3


def test_onnx_and_pytorch_encode_the_same(encoder, tmp_path):
    loaded = load_encoder(encoder, CPU)
    path = checkpoints.export(
        loaded.network, torch.zeros(1, 3, 128, 256), tmp_path / "encoder.onnx", ("big_img", "encoding_indices")
    )
    frames = pictures(3, 128, 256)
    onnx = load_encoder(path, CPU)
    assert onnx.encode(frames).shape == (3, 8, 16)
    assert (onnx.encode(frames) == loaded.encode(frames)).mean() > 0.99
    with pytest.raises(InputError, match="takes frames of 3 x 128 x 256"):
        onnx.encode(pictures(1, 64, 256))


def test_the_encoder_sees_raw_rgb(encoder):
    loaded, seen = load_encoder(encoder, CPU), []
    loaded.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    frame = pictures(1, 128, 256)
    loaded.encode(frame)
    assert seen[0].dtype == torch.float32 and np.array_equal(seen[0].numpy()[0].transpose(1, 2, 0), frame[0])


def test_the_nearest_code_is_found():
    from vqcomp.world.autoencoders import Codebook

    book = Codebook(5, 3)
    with torch.no_grad():
        codes = book._embedding.weight
        assert book.nearest(codes + 1e-3).tolist() == [0, 1, 2, 3, 4]


def test_the_real_encoder_encodes_what_the_real_decoder_drew():
    encoders, decoders = checkpoints.real("encoder"), checkpoints.real("decoder")
    if not encoders or not decoders:
        pytest.skip("set VQCOMP_COMMA_ENCODER and VQCOMP_COMMA_DECODER (or ..._ONNX) to the published files")
    ids = np.random.RandomState(0).randint(0, 1024, (2, 8, 16))
    frames = load_decoder(decoders[0], CPU).decode(ids)
    found = [load_encoder(path, CPU).encode(frames) for path in encoders]
    for again in found:
        assert again.shape == ids.shape and again.min() >= 0 and again.max() < 1024
        assert (again == found[0]).mean() > 0.95


def test_fps_takes_frames_by_their_times(encoder, film, tmp_path):
    assert seeing.tokenize(film, tmp_path / "ten.npy", encoder, fps=10, compute=CPU) == (6, 8, 16)
    every = seeing.tokenize(film, tmp_path / "all.npy", encoder, fps=100, compute=CPU)
    assert every == (11, 8, 16)  # frames are never made up
    ten, all_ = np.load(tmp_path / "ten.npy"), np.load(tmp_path / "all.npy")
    assert (ten == all_[::2]).mean() > 0.999


def test_tokens_are_ready_to_be_compressed(encoder, film, tmp_path):
    out = str(tmp_path / "tokens.npy")
    arguments = ["tokenize", str(film), "-o", out, "--encoder", str(encoder), "--crop", "centre", "--device", "cpu"]
    assert run([*arguments, "-q"]) == 0
    assert run(["compress", out, str(tmp_path / "a.zip"), "--model", "none", "-q"]) == 0


# --- what cannot be read


def test_what_is_no_video_is_said(encoder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, message in (
        ("text.mp4", "expected a video that PyAV reads"),
        ("empty.mp4", "expected a video that PyAV reads"),
        ("sound.wav", "without pictures"),
        ("missing.mp4", "no such file"),
        (".", "found something else"),
    ):
        with pytest.raises(InputError, match=message):
            seeing.tokenize(tmp_path / name, tmp_path / "out.npy", encoder, compute=CPU)
    assert not (tmp_path / "out.npy").exists()


def test_a_video_without_frames_is_said(film):
    class Empty:
        def decode(self, stream):
            return iter(())

    with video.Video(film) as opened:
        opened.container.close()
        opened.container = Empty()
        opened.container.close = lambda: None
        with pytest.raises(InputError, match="without frames"):
            list(opened.frames())


def test_a_video_that_is_cut_off_is_said_or_is_shorter(encoder, film, tmp_path):
    data = film.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    try:
        shape = seeing.tokenize(tmp_path / "cut.mkv", tmp_path / "out.npy", encoder, compute=CPU)
    except InputError as error:
        assert "cut.mkv" in str(error)
    else:
        assert shape[0] < 11


def test_a_decoder_in_the_encoders_place_is_refused(film, tmp_path):
    torch.save(checkpoints.comma_decoder(), tmp_path / "decoder.bin")
    with pytest.raises(ModelError, match="found a decoder"):
        seeing.tokenize(film, tmp_path / "out.npy", tmp_path / "decoder.bin", compute=CPU)


def test_a_missing_package_is_named(encoder, film, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match=r"av: pip install 'vqcomp\[video\]'"):
        seeing.tokenize(film, tmp_path / "out.npy", encoder, compute=CPU)
