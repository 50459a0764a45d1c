"""Properties of what training reads: windows from wherever tokens lie, never all in memory, held-out frames apart."""

import dataclasses
import itertools
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import samples, write_shard
from networks import drifting, ring_config

torch = pytest.importorskip("torch")

from vqcomp.data.sources import find_segments
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import InputError
from vqcomp.runtime.spec import TokenSpec
from vqcomp.training.config import TrainConfig
from vqcomp.training.feed import Feed, _choose, usual_held_out
from vqcomp.training.frames import stored

CONFIG = ring_config()
SPEC = TokenSpec(3, 4, (11,))
SETTINGS = TrainConfig(batch=3, frames=8, held_out=12, reverse=0.5, mirror=0.5, stride=0.5)


def batches(segments, config=SETTINGS, network=CONFIG, steps=4):
    feed = Feed(segments, network, config)
    return [feed.batch(step, 0)[0] for step in range(1, steps + 1)]


@pytest.mark.parametrize("layout", ["plain", "fortran", "flat", "big-endian", "int64", "shard", "memory"])
def test_windows_are_the_same_wherever_and_however_tokens_lie(tmp_path, layout):
    arrays = [drifting(60, seed)[..., 0] for seed in (0, 1)]
    expected = batches([a[..., None] for a in arrays])
    grids = {f"{i}.npy": a.reshape(-1, 3, 4).astype("<i2") for i, a in enumerate(arrays)}
    data = tmp_path / "data"
    data.mkdir()
    change = {
        "fortran": np.asfortranarray,
        "flat": lambda a: a.reshape(len(a), -1),
        "big-endian": lambda a: a.astype(">i4"),
        "int64": lambda a: a.astype(np.int64),
    }.get(layout, lambda a: a)
    if layout == "shard":
        write_shard(data / "data-0000.tar.gz", samples({name[:-4]: a for name, a in grids.items()}))
    for name, array in grids.items() if layout != "shard" else ():
        np.save(data / name, change(array))
    found = find_segments(grids if layout == "memory" else data, (3, 4)).segments
    with stored(found, SPEC, tmp_path) as frames:
        assert len(list(tmp_path.iterdir())) == (2 if layout == "shard" else 1)
        for got, want in zip(batches(frames), expected, strict=True):
            assert torch.equal(got, want)
    assert list(tmp_path.iterdir()) == [data]


def test_ids_of_several_factors_are_split():
    ids = np.random.default_rng(0).integers(0, 77, (60, 3, 4))
    network = dataclasses.replace(CONFIG, factors=(11, 7))
    with stored(find_segments({"a": ids}).segments, TokenSpec(3, 4, (11, 7)), None) as frames:
        got = batches(frames, network=network)
    factors = np.stack([ids.reshape(60, 12) % 11, ids.reshape(60, 12) // 11], -1)
    assert all(torch.equal(a, b) for a, b in zip(got, batches([factors], network=network), strict=True))


@pytest.mark.parametrize("shard", [False, True])
def test_tokens_are_not_held_in_memory(tmp_path, shard):
    spec = TokenSpec(8, 16, (1024,))
    network = ModelConfig(**{**vars(CONFIG), "height": 8, "width": 16, "factors": (1024,)})
    data = tmp_path / "data"
    data.mkdir()
    array = np.random.default_rng(0).integers(0, 1024, (60_000, 8, 16)).astype(np.int16)
    size = array.nbytes
    if shard:
        pieces = {f"{i:02}": piece for i, piece in enumerate(np.split(array, 30))}
        write_shard(data / "data-0000.tar", samples(pieces))
    else:
        np.save(data / "long.npy", array)
    del array
    tracemalloc.start()
    try:
        with stored(find_segments(data).segments, spec, tmp_path) as frames:
            feed = Feed(frames, network, SETTINGS)
            for step in range(50):
                feed.batch(step, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert feed.frames == 60_000
    assert peak < size / 3


def test_batches_depend_on_seed_step_and_micro_batch_alone():
    feed = Feed([drifting()], CONFIG, SETTINGS)
    again = Feed([drifting()], CONFIG, SETTINGS)
    drawn = [feed.batch(step, micro) for step in (1, 2) for micro in (0, 1)]
    redrawn = [again.batch(step, micro) for step in (2, 1) for micro in (1, 0)][::-1]
    for (a, seed), (b, other) in zip(drawn, redrawn, strict=True):
        assert torch.equal(a, b) and seed == other
    assert len({seed for _, seed in drawn}) == 4
    other = Feed([drifting()], CONFIG, dataclasses.replace(SETTINGS, seed=1)).batch(1, 0)
    assert other[1] != drawn[0][1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 20), st.randoms())
def test_windows_are_frames_of_one_segment_in_order_and_never_held_out(held_out, frames, every, extra, random):
    """Tokens tell their segment and frame: id = 100 * segment + frame."""
    least = (held_out + frames) * every
    lengths = [least + random.randint(0, extra) for _ in range(3)]
    network = dataclasses.replace(CONFIG, factors=(400,))
    segments = [np.tile(100 * i + np.arange(n)[:, None, None], (1, 12, 1)) for i, n in enumerate(lengths)]
    config = TrainConfig(batch=4, frames=frames, held_out=held_out, every=every, reverse=0, mirror=0, stride=0.5)
    for batch in batches(segments, config, network):
        assert batch.shape == (4, frames, 12, 1)
        for window in batch[:, :, 0, 0].tolist():
            steps = {b - a for a, b in itertools.pairwise(window)}
            assert steps <= {every} or steps <= {2 * every}
            assert window[-1] % 100 < lengths[window[0] // 100] - held_out * every


@pytest.mark.parametrize("change", ["mirror", "reverse"])
def test_a_share_of_windows_is_mirrored_or_reversed_and_the_others_are_left_alone(change):
    """The shares decide nothing but the flip: the same seed draws the same windows."""
    plain = dataclasses.replace(SETTINGS, batch=40, reverse=0, mirror=0)
    never, always, half = (
        torch.cat(batches([drifting()], dataclasses.replace(plain, **{change: share}))).view(-1, 8, 3, 4, 1)
        for share in (0, 1, 0.5)
    )
    flipped = never.flip(3 if change == "mirror" else 1)
    assert not torch.equal(flipped, never)
    assert torch.equal(always, flipped)
    is_flipped = [torch.equal(window, other) for window, other in zip(half, flipped, strict=True)]
    is_plain = [torch.equal(window, other) for window, other in zip(half, never, strict=True)]
    assert all(a or b for a, b in zip(is_flipped, is_plain, strict=True))
    assert 0.3 < sum(is_flipped) / len(is_flipped) < 0.7


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=25),
    frames=st.integers(1, 32),
    every=st.integers(1, 15),
    drops=st.booleans(),
)
def test_without_a_word_of_the_user_so_much_is_held_out_as_leaves_a_window(lengths, frames, every, drops):
    config = TrainConfig(frames=frames, every=every, drops_short=drops)
    held_out = usual_held_out(lengths, config)
    measure = (max if drops else min)(lengths) // every
    assert 1 <= held_out <= 300
    if measure > frames:
        assert held_out <= measure if len(lengths) >= 20 else held_out <= max(1, min(measure - frames, measure // 4))
        segments = [np.zeros((n, 12, 1), np.int64) for n in lengths]
        Feed(segments, CONFIG, dataclasses.replace(config, held_out=held_out))


def test_of_a_whole_segment_of_commavq_300_frames_are_held_out():
    assert usual_held_out([1200], TrainConfig()) == 300
    assert usual_held_out([1200] * 20, TrainConfig()) == 300
    assert usual_held_out([1200], TrainConfig(held_out=0)) == 0


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(2, 100), frames=st.integers(1, 60), held_out=st.integers(0, 60), every=st.integers(1, 9),
    drops=st.booleans(), count=st.sampled_from([1, 20]),
)  # fmt: skip
def test_the_options_that_an_error_names_cure_it(length, frames, held_out, every, drops, count):
    segments = [np.zeros((length, 12, 1), np.int64)] * count
    config = TrainConfig(frames=frames, held_out=held_out, every=every, drops_short=drops)
    try:
        Feed(segments, CONFIG, config)
    except InputError as error:
        for name, value in re.findall(r"(held-out |frames=|every=)(\d+)", str(error).split("try")[1]):
            Feed(segments, CONFIG, dataclasses.replace(config, **{name.strip(" =").replace("-", "_"): int(value)}))


def test_of_many_segments_some_are_held_out_whole():
    network = dataclasses.replace(CONFIG, factors=(1000,))
    segments = [np.full((20, 12, 1), i) for i in range(40)]
    feed = Feed(segments, network, dataclasses.replace(SETTINGS, batch=200, held_out=12))
    held = {int(s[0][0, 0] if s[0].ndim == 2 else s[:1][0, 0, 0]) for s in feed.held_out}
    trained = {int(i) for step in range(5) for i in feed.batch(step, 0)[0].unique()}
    assert len(held) == feed.whole == 2
    assert trained == set(range(40)) - held
    assert feed.trained_frames == 38 * 20
    assert int(feed.counts[0].sum()) == 38 * 20 * 12 and not feed.counts[0][sorted(held)].any()
    alone = Feed(segments[:19], network, dataclasses.replace(SETTINGS, held_out=12))
    assert alone.whole == 0 and len(alone.held_out) == 19


@pytest.mark.parametrize(("segments", "count"), [(19, 0), (20, 1), (100, 5), (5000, 32), (100_000, 32)])
def test_five_percent_of_segments_and_at_most_32_are_held_out(segments, count):
    chosen = _choose(segments, TrainConfig())
    assert len(chosen) == count and all(0 <= i < segments for i in chosen)
    assert not _choose(segments, TrainConfig(held_out_share=0))


def test_every_nth_frame_is_evaluated_from_every_first_one_on():
    network = dataclasses.replace(CONFIG, factors=(100,))
    segment = np.tile(np.arange(60)[:, None, None], (1, 12, 1))
    feed = Feed([segment], network, dataclasses.replace(SETTINGS, every=3, held_out=4))
    assert [s[len(s) - 4 :][:, 0, 0].tolist() for s in feed.held_out] == [
        [48, 51, 54, 57], [49, 52, 55, 58], [50, 53, 56, 59],
    ]  # fmt: skip


def test_short_segments_are_left_out_where_the_settings_say_so():
    config = dataclasses.replace(SETTINGS, drops_short=True)
    assert Feed([drifting(60), drifting(19)], CONFIG, config).segments == 1
    with pytest.raises(InputError, match="a segment of 20 frames or more, found none"):
        Feed([drifting(19)], CONFIG, config)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((60, 3, 4), np.int16))
    with stored(find_segments(tmp_path).segments, SPEC, tmp_path) as frames:
        feed = Feed(frames, CONFIG, SETTINGS)
        np.save(tmp_path / "a.npy", np.full((60, 3, 4), 11, np.int16))
        with pytest.raises(InputError, match=r"a\.npy: expected ids in 0\.\.10, found 11 to 11"):
            feed.batch(0, 0)
        (tmp_path / "a.npy").write_bytes(b"")
        with pytest.raises(InputError, match=r"a\.npy: cannot be read any more"):
            feed.batch(0, 0)
