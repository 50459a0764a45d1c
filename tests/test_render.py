"""Tokens as pictures: decoders, colours, costs, films and sheets."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_segment

torch = pytest.importorskip("torch")
import checkpoints

from vqcomp import model_files, seeing
from vqcomp.cli import run
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DependencyError, InputError, ModelError, VqcompError
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.spec import TokenSpec
from vqcomp.world import video
from vqcomp.world.autoencoders import CommaDecoder, build
from vqcomp.world.decoders import load_decoder, load_encoder
from vqcomp.world.palette import Palette
from vqcomp.world.pictures import beside, overlay, sheet
from vqcomp.world.surprise import costs

CPU = Compute("cpu", 1, 1, 4)
COMMA = TokenSpec(8, 16, (1024,))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.bin"
    torch.save(checkpoints.comma_decoder(), path)
    return path


def ids(frames: int = 3, vocabulary: int = checkpoints.VOCABULARY, grid: tuple[int, int] = (8, 16)) -> np.ndarray:
    return np.random.RandomState(0).randint(0, vocabulary, (frames, *grid))


def read_film(path: Path) -> list[np.ndarray]:
    pytest.importorskip("av")
    with video.Video(path) as film:
        return list(film.frames())


# --- decoders


def test_commas_decoder_has_the_published_number_of_weights():
    shapes = {n: t.to("meta") for n, t in checkpoints.comma_decoder((128, 128, 256, 256, 512), 3, 256, 1024).items()}
    with torch.device("meta"):
        network = CommaDecoder(shapes)
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in shapes.items()}
    assert round(sum(t.numel() for t in shapes.values()) / 1e6, 1) == 42.8


def test_commas_decoder_draws_frames_sixteen_pixels_a_token(decoder):
    film = load_decoder(decoder, CPU).decode(ids())
    assert film.shape == (3, 128, 256, 3) and film.dtype == np.uint8
    assert film.std() > 1


@pytest.mark.parametrize("kind", ["decoder", "magvit2"])
def test_the_real_decoder_loads_and_draws(kind):
    paths = checkpoints.real(kind)
    if not paths:
        pytest.skip(f"set {' or '.join(checkpoints.REAL[kind])} to the published file")
    grid, vocabulary = ((8, 16), 1024) if kind == "decoder" else ((16, 16), 1 << 18)
    films = [load_decoder(path, CPU).decode(ids(1, vocabulary, grid)) for path in paths]
    for film in films:
        assert film.shape == (1, 16 * grid[0], 16 * grid[1], 3)
        assert film.std() > 1
        assert np.abs(film.astype(int) - films[0]).mean() < 2


def test_frames_do_not_depend_on_the_batch(decoder):
    one, many = (load_decoder(decoder, Compute("cpu", 1, 1, n)).decode(ids(5)).astype(int) for n in (1, 5))
    assert np.abs(one - many).max() <= 1


def test_onnx_and_pytorch_draw_the_same(decoder, tmp_path):
    loaded = load_decoder(decoder, CPU)
    path = checkpoints.export(
        loaded.network, torch.zeros(1, 8, 16, dtype=torch.int64), tmp_path / "decoder.onnx",
        ("encoding_indices", "big_decoded_img"),
    )  # fmt: skip
    onnx = load_decoder(path, CPU)
    assert np.abs(onnx.decode(ids(5)).astype(int) - loaded.decode(ids(5))).max() <= 1
    with pytest.raises(InputError, match="codebook"):
        onnx.decode(ids() + checkpoints.VOCABULARY)
    with pytest.raises(InputError, match="ids in 0"):
        onnx.decode(ids() + 2000)
    with pytest.raises(InputError, match="8 x 16"):
        onnx.decode(ids(1, grid=(16, 16)))


def test_an_onnx_file_that_is_no_decoder_is_refused(tmp_path):
    path = checkpoints.export(torch.nn.ReLU(), torch.zeros(1, 3), tmp_path / "x.onnx", ("x", "y"))
    with pytest.raises(ModelError, match="encoding_indices"):
        load_decoder(path, CPU)
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07nothing")
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        load_decoder(tmp_path / "broken.onnx", CPU)


def test_safetensors_draw_the_same(decoder, tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    save(checkpoints.comma_decoder(), tmp_path / "decoder.safetensors")
    assert np.array_equal(
        load_decoder(tmp_path / "decoder.safetensors", CPU).decode(ids()), load_decoder(decoder, CPU).decode(ids())
    )


def test_magvit2_is_found_in_a_trainings_checkpoint_and_reads_bits(tmp_path):
    torch.save(checkpoints.magvit2(), tmp_path / "magvit2.ckpt")
    loaded = load_decoder(tmp_path / "magvit2.ckpt", CPU)
    assert loaded.vocabulary == 64
    assert loaded.decode(ids(2, 64, (4, 4))).shape == (2, 64, 64, 3)
    seen = []
    loaded.network.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    loaded.run(np.array([[[0b000101]]]))
    assert seen[0].flatten().tolist() == [1, -1, 1, -1, -1, -1]  # channel c is bit c


def test_depth_to_space_lays_quarters_of_the_channels_out_as_rows_then_columns():
    from vqcomp.world.autoencoders import DepthToSpace

    layer = DepthToSpace(1)
    with torch.no_grad():
        layer.conv1.weight.zero_()
        layer.conv1.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert layer(torch.zeros(1, 1, 1, 1)).tolist() == [[[[1.0, 2.0], [3.0, 4.0]]]]


@pytest.mark.parametrize("value", [-1, checkpoints.VOCABULARY])
def test_ids_beyond_the_codebook_are_refused(decoder, value):
    bad = ids()
    bad[1, 2, 3] = value
    with pytest.raises(InputError, match=f"0..63, the tokens have {value}"):
        load_decoder(decoder, CPU).decode(bad)


def test_a_checkpoint_with_other_names_or_shapes_is_refused():
    whole = checkpoints.comma_decoder()
    for change, message in (
        (lambda t: t.pop("mid.attn_1.q.bias"), "lacks 1 tensors, such as mid.attn_1.q.bias"),
        (lambda t: t.update({"more.weight": torch.zeros(1)}), "more.weight"),
        (lambda t: t.update({"norm_out.weight": torch.ones(31)}), "tensor norm_out.weight: expected the shape 32"),
        (lambda t: t.update({"conv_out.weight": torch.zeros(4, 32, 3, 3)}), "tensor conv_out.weight"),
        (lambda t: t.update({"conv_out.bias": torch.zeros(3, dtype=torch.int64)}), "of floats, found 3 of int64"),
        (lambda t: t.pop("quantize._embedding.weight"), "quantize._embedding.weight"),
        (lambda t: t.update({"quantize._embedding.weight": torch.zeros(3)}), "expected 2 dimensions"),
    ):
        tensors = dict(whole)
        change(tensors)
        with pytest.raises(ModelError, match=message):
            build(CommaDecoder, tensors)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_a_state_dict_holds_it_loads_or_is_refused(data):
    tensors = dict(checkpoints.comma_decoder())
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
        shape = data.draw(st.lists(st.integers(0, 40), max_size=4))
        tensors[name] = torch.zeros(shape)
    try:
        build(CommaDecoder, tensors)
    except ModelError:
        return
    assert all(tensors[n].shape == t.shape for n, t in checkpoints.comma_decoder().items() if "embedding" not in n)


class Nasty:
    def __reduce__(self):
        return print, ("this must not run",)


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    torch.save({**checkpoints.comma_decoder(), "more": Nasty()}, tmp_path / "nasty.bin")
    (tmp_path / "nasty.pkl").write_bytes(pickle.dumps(Nasty()))
    for name in ("nasty.bin", "nasty.pkl"):
        with pytest.raises(ModelError, match=name):
            load_decoder(tmp_path / name, CPU)
    assert "must not run" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    (tmp_path / "text.bin").write_text("hello")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(VqcompError, match=path.name if path.suffix != ".safetensors" else "safetensors"):
            load_decoder(path, CPU)
    with pytest.raises(InputError, match="no such file"):
        load_decoder(tmp_path / "missing.onnx", CPU)


def test_an_encoder_is_no_decoder_nor_the_reverse(decoder, tmp_path):
    torch.save(checkpoints.comma_encoder(), tmp_path / "encoder.bin")
    with pytest.raises(ModelError, match="found an encoder"):
        load_decoder(tmp_path / "encoder.bin", CPU)
    with pytest.raises(ModelError, match="found a decoder"):
        load_encoder(decoder, CPU)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"onnxruntime: pip install 'vqcomp\[video\]'"):
        load_decoder(tmp_path / "x.onnx", CPU)
    monkeypatch.setitem(sys.modules, "av", None)
    np.save(tmp_path / "a.npy", tokens((2, 8, 16), 1024))
    with pytest.raises(DependencyError, match="av"):
        seeing.render(tmp_path / "a.npy", tmp_path / "a.mp4", compute=CPU)
    assert not (tmp_path / "a.mp4").exists()


# --- costs


@pytest.mark.parametrize(
    ("kind", "factors"), [("adaptive", (70,)), ("adaptive", (5, 30)), ("gpt", (70,)), ("mixed", (70,))]
)
def test_costs_add_up_to_the_streams(kind, factors, tiny_model):
    spec, model = TokenSpec(3, 4, factors), None
    if kind != "adaptive":
        model = tiny_model.read_bytes()
    adapt, segments = kind != "gpt", [random_segment(spec, n, seed=n) for n in (40, 7, 25)]
    groups = [[s] for s in segments] if kind == "gpt" else [segments]
    codec = make_codec(spec, model, adapt=adapt, compute=CPU)
    streams = codec.encode(groups)
    codec.close()
    measured = costs(spec, model, groups, adapt=adapt, compute=CPU)
    for stream, group, bits in zip(streams, groups, measured):
        assert [b.shape for b in bits] == [s.shape[:2] for s in group]
        assert all((b >= 0).all() for b in bits)
        assert abs(sum(float(b.sum()) for b in bits) - 8 * len(stream)) <= 64


def test_tokens_that_nothing_predicts_cost_what_uniform_coding_takes():
    segment = np.random.RandomState(0).randint(0, 64, (3, 12, 1))
    ((bits,),) = costs(TokenSpec(3, 4, (64,)), None, [[segment]], compute=CPU)
    assert np.allclose(bits, 6)


# --- colours


def test_near_codes_get_near_colours():
    model = model_files.shipped_models()["commavq-mini"]
    palette = Palette(COMMA, model.data)
    colours = palette.paint(np.arange(1024)).astype(float)
    from vqcomp.runtime.weights import read_model

    codes = read_model(model.data)[1]["embed.0"][0][:-1].astype(float)
    far = ((codes[:, None] - codes[None]) ** 2).sum(-1)
    np.fill_diagonal(far, np.inf)
    nearest = np.abs(colours - colours[far.argmin(1)]).mean()
    random = np.abs(colours - colours[np.random.RandomState(0).permutation(1024)]).mean()
    assert nearest < 0.75 * random
    assert len(np.unique(colours, axis=0)) > 900


def test_ids_of_factors_and_ids_without_a_model_get_colours():
    for factors in ((512, 512), (3,), (40, 40, 40)):
        palette = Palette(TokenSpec(2, 2, factors))
        colours = palette.paint(np.arange(min(np.prod(factors), 500)))
        assert colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) > 1
        assert not palette.by_model


# --- pictures and films


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([3, 4]), st.integers(0, 999))
def test_png_comes_back_as_it_was(height, width, channels, seed):
    av = pytest.importorskip("av")
    import io

    image = np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)
    form = "rgb24" if channels == 3 else "rgba"
    (frame,) = av.open(io.BytesIO(video.png(image))).decode(video=0)
    assert np.array_equal(frame.to_ndarray(format=form), image)


def test_heat_lies_over_what_costs_bits_alone():
    film = np.full((1, 4, 8, 3), 200, np.uint8)
    bits = np.zeros((1, 2, 4), np.float32)
    bits[0, 1, 2] = 12
    out = overlay(film, bits).astype(int)
    hot = out[0, 2:, 4:6]
    assert (hot.max(-1) - hot.min(-1) > 20).all()  # coloured
    out[0, 2:, 4:6] = out[0, 0, 0]
    assert (out == out[0, 0, 0]).all() and np.ptp(out[0, 0, 0]) == 0  # all else is grey


def test_films_side_by_side_are_as_long_as_the_shortest():
    a, b = np.zeros((3, 2, 4, 3), np.uint8), np.ones((2, 2, 5, 3), np.uint8)
    both = beside([a, b])
    assert both.shape[0] == 2 and (both[:, :, :4] == 0).all() and (both[:, :, -5:] == 1).all()


def test_a_sheet_shows_every_frame_and_its_number():
    film = np.stack([np.full((40, 60, 3), 10 * i, np.uint8) for i in range(1, 8)])
    paper = sheet(film, range(7))
    for i in range(1, 8):
        assert (paper == 10 * i).all(-1).sum() >= 2400
    assert (sheet(film, [1] * 7) != sheet(film, [8] * 7)).any()


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_films_have_all_frames(kind, tmp_path):
    np.save(tmp_path / "a.npy", tokens((23, 8, 16), 1024))
    pytest.importorskip("av")
    count = seeing.render(tmp_path / "a.npy", tmp_path / f"a.{kind}", compute=CPU)
    film = read_film(tmp_path / f"a.{kind}")
    assert count == len(film) == 23
    expected = seeing.palette_for(COMMA, None).paint(np.load(tmp_path / "a.npy")).repeat(16, 1).repeat(16, 2)
    assert np.abs(film[5].astype(int) - expected[5]).mean() < 12


def test_odd_sizes_become_films(tmp_path):
    frames = [np.random.RandomState(i).randint(0, 256, (9, 15, 3)).astype(np.uint8) for i in range(3)]
    pytest.importorskip("av")
    video.write_film(tmp_path / "a.mp4", frames, 20, "mp4")
    assert [f.shape for f in read_film(tmp_path / "a.mp4")] == [(10, 16, 3)] * 3


def test_no_h264_encoder_is_said(tmp_path, monkeypatch):
    av = pytest.importorskip("av")

    def none(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av.codec, "Codec", none)
    with pytest.raises(DependencyError, match=r"no H\.264 encoder"):
        video.write_film(tmp_path / "a.mp4", [np.zeros((2, 2, 3), np.uint8)], 20, "mp4")


def test_render_by_a_decoder_compared_and_with_surprise(decoder, tmp_path):
    np.save(tmp_path / "a.npy", ids(6))
    np.save(tmp_path / "b.npy", ids(4) // 2)
    arguments = ["render", str(tmp_path / "a.npy"), "-o", str(tmp_path / "out.png"), "--compare"]
    arguments += [str(tmp_path / "b.npy"), "--decoder", str(decoder), "--surprise", "--model", "none", "-q", "--device"]
    assert run([*arguments, "cpu"]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_render_takes_a_segment_of_an_archive_by_its_name(tmp_path):
    for name in ("one", "two"):
        np.save(tmp_path / f"{name}.npy", tokens((12, 8, 16), 1024, seed=len(name)))
    (tmp_path / "data").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.npy").rename(tmp_path / "data" / f"{name}.npy")
    assert run(["compress", str(tmp_path / "data"), str(tmp_path / "a.zip"), "--model", "none", "-q"]) == 0
    for source in ("a.zip", "data"):
        picture = tmp_path / f"{source}.png"
        assert run(["render", f"{tmp_path / source}:one.npy", "-o", str(picture), "-q"]) == 0
    assert (tmp_path / "a.zip.png").read_bytes() == (tmp_path / "data.png").read_bytes()
    with pytest.raises(InputError, match=r"expected one segment, found 2: name one.*one\.npy"):
        seeing.render(tmp_path / "a.zip", tmp_path / "x.png", compute=CPU)
    with pytest.raises(InputError, match="no segment 'three'"):
        seeing.render(f"{tmp_path / 'a.zip'}:three", tmp_path / "x.png", compute=CPU)


def test_what_cannot_be_meant_is_said(tmp_path):
    np.save(tmp_path / "a.npy", tokens((12, 8, 16), 1024))
    np.save(tmp_path / "b.npy", tokens((12, 3, 4), 70))
    for arguments, message in (
        ({"out": "a.webm"}, "ends in .mp4, .gif or .png"),
        ({"out": "a.npy.png", "start": 12}, "there are 12 frames"),
        ({"out": "x.png", "compare": tmp_path / "b.npy"}, "frames of one grid"),
        ({"out": "x.png", "tokens": tmp_path / "b.npy", "model": "commavq-nano"}, "b.npy has 3x4"),
        ({"out": "no/x.png"}, "no such folder"),
    ):
        call = {"tokens": tmp_path / "a.npy", **arguments}
        call["out"] = tmp_path / call["out"]
        with pytest.raises(InputError, match=message):
            seeing.render(**call, compute=CPU)


def test_a_film_that_is_there_is_not_overwritten(tmp_path):
    np.save(tmp_path / "a.npy", tokens((12, 8, 16), 1024))
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="-f overwrites"):
        seeing.render(tmp_path / "a.npy", tmp_path / "a.png", compute=CPU)
    assert (tmp_path / "a.png").read_bytes() == b"mine"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 199), st.none() | st.integers(1, 50), st.none() | st.integers(1, 9))
def test_chosen_frames_are_there_in_order_and_no_more_than_asked_for(length, start, count, every):
    if start >= length:
        return
    chosen = seeing.choose_frames(length, start, count, every, 48)
    assert chosen[0] == start and chosen == sorted(set(chosen)) and chosen[-1] < length
    if count:
        assert len(chosen) <= count
    elif not every:
        assert len(chosen) == min(48, length - start) and chosen[-1] == length - 1


def test_what_is_compared_is_coloured_and_measured_by_one_model(tmp_path):
    array = tokens((12, 8, 16), 1024)
    np.save(tmp_path / "a.npy", array)
    assert run(["compress", str(tmp_path / "a.npy"), str(tmp_path / "a.zip"), "--model", "commavq-pico", "-q"]) == 0
    said: list[str] = []
    seeing.render(
        tmp_path / "a.zip", tmp_path / "both.png", compare=tmp_path / "a.npy", surprise=True, frames=1, start=5,
        compute=CPU, report=said.append,
    )  # fmt: skip
    assert [line.partition(": ")[2] for line in said] == ["costs by the archive's own codec with learning on top"] * 2
    pytest.importorskip("av")
    (picture,) = read_film(tmp_path / "both.png")
    left, right = (picture[18 : 18 + 128, x : x + 256] for x in (18, 18 + 256 + 6))
    assert left.std() > 5 and np.array_equal(left, right)
