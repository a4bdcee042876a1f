"""The hash specification: golden vectors, the layout against its definition, checks of arguments, statistics."""

import json
import math

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import layout, specs, table, weight

from hashedmm import hashing
from hashedmm.hashing import HASHES, HashSpec, derive_seed, fmix32, share, splitmix64

# ---- golden vectors: these numbers are the specification; they never change


def test_golden_integers():
    assert fmix32(1) == 0x514E28B7
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]
    assert derive_seed(42, 0) == 0x3805EA2C


@pytest.mark.parametrize(
    "hash, expected",
    [
        ("fmix32", [0x7E10C4EB, 0x9E75EB12, 0x2CDCE473]),
        ("xxh32", [0x40285DCF, 0x7DD79BC9, 0x4B34DE73]),
        ("multiply_shift", [0x47526757, 0x70424A8A, 0x0529997D]),
    ],
)
def test_golden_block_hashes(hash, expected):
    spec = HashSpec((4, 4), 1.0, seed=42, hash=hash)
    assert [int(spec.hash_blocks(i, j)[0]) for i, j in ((0, 0), (0, 1), (1, 0))] == expected


def test_golden_strips():
    spec = HashSpec.strips((40, 30), 1 / 4, height=16, panel=(32, 16), seed=42)
    bucket, sign = spec.indices()
    assert spec.n_buckets == 288
    assert bucket[0, :6].tolist() == [48, 64, 80, 112, 96, 0]
    assert sign[0, :6].tolist() == [-1, 1, 1, -1, 1, -1]
    assert (bucket.astype(int) * sign).sum() == -10408
    assert (bucket.dtype, sign.dtype) == (np.int32, np.int8)


def test_golden_tiles():
    spec = HashSpec.tiles((40, 30), 1 / 2, tile=16, seed=42)
    bucket, sign = spec.indices()
    assert spec.n_buckets == 600
    assert (bucket.astype(int) * sign).sum() == -154488


def test_golden_fitting():
    spec = HashSpec.strips((129, 1025), 1 / 8)
    assert (spec.block, spec.panel) == ((80, 1), (80, 528))
    assert [share(n, m) for n, m in ((1000, 128), (784, 1024), (10, 3), (100, 99), (129, 128))] == [128, 784, 3, 50, 80]


# ---- hashes


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_fmix32_is_the_same_on_arrays_and_integers(words):
    assert fmix32(np.array(words, np.uint32)).tolist() == [fmix32(word) for word in words]


def test_fmix32_does_not_change_its_argument():
    a = np.arange(5, dtype=np.uint32)
    fmix32(a)
    assert a.tolist() == [0, 1, 2, 3, 4]


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1))
def test_xxh32_is_the_library_function(block_row, block_col, seed):
    data = np.array([block_row, block_col], "<u4").tobytes()
    assert int(hashing.hash_xxh32(block_row, block_col, seed)[0]) == xxhash.xxh32(data, seed=seed).intdigest()


def test_layers_take_different_seeds():
    seeds = {derive_seed(seed, layer) for seed in range(20) for layer in range(20)}
    assert len(seeds) == 400


# ---- layout


def _check_against_definition(spec, places):
    panels = layout(spec)
    assert spec.n_buckets == sum(buckets for _, buckets in panels.values())
    assert spec.panel_slices() == [(base, base + buckets) for base, buckets in panels.values()]
    bucket, sign = spec.indices()
    assert bucket.shape == sign.shape == spec.shape
    for i, j in places:
        assert (bucket[i, j], sign[i, j]) == weight(spec, panels, i, j), (spec, i, j)


@pytest.mark.parametrize("hash", HASHES)
def test_indices_follow_the_definition_in_every_structure(hash):
    rng = np.random.default_rng(3)
    for _, spec in table(hashes=(hash,)):
        places = zip(rng.integers(0, spec.rows, 12), rng.integers(0, spec.cols, 12), strict=True)
        corner = [(spec.rows - 1, spec.cols - 1), (0, spec.cols - 1), (spec.rows - 1, 0)]
        _check_against_definition(spec, corner + [(int(i), int(j)) for i, j in places])


@settings(max_examples=60, deadline=None)
@given(specs(most=25))
def test_indices_follow_the_definition_at_random(spec):
    _check_against_definition(spec, [(i, j) for i in range(spec.rows) for j in range(spec.cols)])


@settings(max_examples=60, deadline=None)
@given(specs())
def test_panels_own_their_buckets(spec):
    bucket, _ = spec.indices()
    ph, pw = spec.panel or spec.shape
    starts = iter(spec.panel_slices())
    for i in range(0, spec.rows, ph):
        for j in range(0, spec.cols, pw):
            start, stop = next(starts)
            part = bucket[i : i + ph, j : j + pw]
            assert start <= part.min() and part.max() < stop


@settings(max_examples=60, deadline=None)
@given(specs())
def test_regions_tile_the_matrix(spec):
    covered = np.zeros(spec.shape, int)
    for g in spec.regions:
        covered[g.row : g.row + g.rows, g.col : g.col + g.cols] += 1
    assert (covered == 1).all()
    assert 1 <= len(spec.regions) <= 4


def test_large_matrices_have_a_layout_though_no_list():
    spec = HashSpec.strips((2**31 - 1, 2**20), 1 / 64)
    assert spec.n_buckets > 2**32
    with pytest.raises(ValueError, match="too large to list|more than 268435456"):
        spec.indices()
    spec = HashSpec.panels((2**16, 2**16), 1 / 8)
    assert spec.n_buckets == 2**29
    assert spec.panel_slices()[-1][1] == 2**29


def test_compression_one_is_not_the_dense_layer():
    spec = HashSpec.elementwise((300, 300), 1)
    assert spec.n_buckets == 90000
    used = len(np.unique(spec.indices()[0])) / spec.n_buckets
    assert used == pytest.approx(1 - math.exp(-1), abs=0.005)


def test_structure_names_its_constructor():
    made = {
        "elementwise": HashSpec.elementwise((300, 200), 1 / 8),
        "panels": HashSpec.panels((300, 200), 1 / 8),
        "strips": HashSpec.strips((300, 200), 1 / 8),
        "runs": HashSpec.runs((300, 200), 1 / 8),
        "tiles": HashSpec.tiles((300, 200), 1 / 8),
        "codebook": HashSpec.codebook((300, 200), 1 / 8),
        "custom": HashSpec((300, 200), 1 / 8, (3, 2), (30, 20)),
    }
    assert {name: spec.structure for name, spec in made.items()} == {name: name for name in made}


def test_summary_says_what_came_out():
    text = HashSpec.strips((129, 1025), 1 / 8).summary()
    for expected in ("129 x 1025", "16,480 buckets", "0.124636", "4 panels of 80 x 528", "smallest T", "38"):
        assert expected in text


# ---- JSON


@settings(deadline=None)
@given(specs())
def test_json_round_trip(spec):
    assert HashSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["version"] == 1


def _altered(**changes):
    fields = json.loads(HashSpec.elementwise((4, 4), 0.5).to_json()) | changes
    return json.dumps({k: v for k, v in fields.items() if v != "DROP"})


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "not json", "1", '{"version": 1}', "[" * 100000,
        _altered(version=2), _altered(version=True), _altered(version=1.0), _altered(version="DROP"),
        _altered(seed="DROP"), _altered(extra=1), _altered(shape=[4]), _altered(shape="44"), _altered(shape=[4, 4.0]),
        _altered(compression=2), _altered(compression="0.5"), _altered(compression=float("nan")),
        _altered(block=[0, 1]), _altered(panel=[1]), _altered(stride=0), _altered(seed=-1), _altered(hash="md5"),
        _altered(hash=None),
        _altered().replace("{", '{"seed": 1, ', 1),
    ],
)  # fmt: skip
def test_from_json_refuses(text):
    with pytest.raises(ValueError):
        HashSpec.from_json(text)


# ---- arguments


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(shape=(0, 4)), ValueError, "shape's rows must be from 1"),
        (dict(shape=(-3, 4)), ValueError, "got -3"),
        (dict(shape=(4, 2**31)), ValueError, "shape's cols must be from 1 to 2147483647"),
        (dict(shape=(4.0, 4)), TypeError, "shape's rows must be an integer, got 4.0"),
        (dict(shape=(True, 4)), TypeError, "bool"),
        (dict(shape=(np.True_, 4)), TypeError, "bool"),
        (dict(shape=16), TypeError, "shape must be a pair"),
        (dict(shape=(4, 4, 4)), TypeError, "shape must be a pair"),
        (dict(compression=0), ValueError, r"in \(0, 1\]"),
        (dict(compression=-0.1), ValueError, r"in \(0, 1\]"),
        (dict(compression=1.0001), ValueError, r"in \(0, 1\]"),
        (dict(compression=float("nan")), ValueError, r"in \(0, 1\]"),
        (dict(compression=float("inf")), ValueError, r"in \(0, 1\]"),
        (dict(compression="1/8"), TypeError, "compression must be a number"),
        (dict(compression=True), TypeError, "compression must be a number"),
        (dict(compression=None), TypeError, "compression must be a number"),
        (dict(block=(0, 1)), ValueError, "block's height"),
        (dict(block=(1, 1.5)), TypeError, "block's width"),
        (dict(panel=(2, 0)), ValueError, "panel's width"),
        (dict(block=(2, 1), panel=(3, 4)), ValueError, "multiple of the block's, .*4 would do"),
        (dict(stride=0), ValueError, "stride must be from 1"),
        (dict(block=(2, 2), stride=5), ValueError, "stride must be from 1 to 4"),
        (dict(stride=True), TypeError, "stride"),
        (dict(seed=-1), ValueError, "seed must be from 0 to 4294967295"),
        (dict(seed=2**32), ValueError, "seed must be from 0"),
        (dict(seed=1.0), TypeError, "seed must be an integer"),
        (dict(seed=None), TypeError, "seed must be an integer"),
        (dict(hash="sha1"), ValueError, "fmix32, xxh32, multiply_shift"),
        (dict(hash=1), TypeError, "hash"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        HashSpec(**(dict(shape=(40, 40), compression=0.5) | arguments))


def test_a_panel_left_without_a_bucket():
    with pytest.raises(ValueError) as e:
        HashSpec.strips((1000, 784), 1 / 4096)
    for expected in ("block (128, 1)", "panel (128, 784)", "would fit", "0.000653"):
        assert expected in str(e.value)
    fits = HashSpec.strips((1000, 784), 0.000654)  # what the message says would fit, does
    assert fits.n_buckets == 1024


def test_more_candidates_than_a_32_bit_hash_reaches():
    with pytest.raises(ValueError, match="use panels"):
        HashSpec.elementwise((2**20, 2**20), 0.5)
    assert HashSpec.elementwise((2**16, 2**16), 0.5).n_buckets == 2**31


@pytest.mark.parametrize(
    "make",
    [
        lambda: HashSpec.strips((40, 40), 0.5, height=0),
        lambda: HashSpec.strips((40, 40), 0.5, height=2.5),
        lambda: HashSpec.strips((40, 40), 0.5, panel=(0, 4)),
        lambda: HashSpec.strips((40, 40), 0.5, panel=16),
        lambda: HashSpec.strips((40, 40), 0.5, stride=0),
        lambda: HashSpec.panels((40, 40), 0.5, (4,)),
        lambda: HashSpec.runs((40, 40), 0.5, length=-1),
        lambda: HashSpec.tiles((40, 40), 0.5, tile="16"),
        lambda: HashSpec.codebook((40, 40), 0.5, length=None),
        lambda: HashSpec.codebook((40, 0), 0.5),
        lambda: derive_seed(-1, 0),
        lambda: derive_seed(1, -1),
        lambda: derive_seed(1.0, 0),
    ],
)
def test_constructors_check_their_arguments(make):
    with pytest.raises((ValueError, TypeError)):
        make()


def test_values_are_normalised():
    a = HashSpec([np.int64(40), 30], np.float32(0.5), [2, 1], [4, 3], np.int32(2), np.uint32(7))
    assert a == HashSpec((40, 30), 0.5, (2, 1), (4, 3), 2, 7)
    assert (type(a.shape[0]), type(a.compression), type(a.seed), type(a.panel)) == (int, float, int, tuple)
    assert hash(a) == hash(HashSpec((40, 30), 0.5, (2, 1), (4, 3), 2, 7))
    with pytest.raises(AttributeError):
        a.seed = 3


def test_a_block_or_panel_larger_than_the_matrix_is_used_as_it_is():
    spec = HashSpec((5, 3), 1.0, (2, 2), (100, 100))
    assert (spec.block, spec.panel, spec.n_panels) == ((2, 2), (100, 100), 1)
    _check_against_definition(spec, [(i, j) for i in range(5) for j in range(3)])
    spec = HashSpec((5, 3), 1.0, (5, 4), None, 3)
    _check_against_definition(spec, [(i, j) for i in range(5) for j in range(3)])


# ---- statistics


def test_loads_are_poisson_for_good_hashes():
    for hash in ("fmix32", "xxh32"):
        statistics = hashing.load_statistics(HashSpec.elementwise((500, 400), 1 / 8, seed=3, hash=hash))
        assert statistics["mean"] == pytest.approx(8)
        assert statistics["dispersion"] == pytest.approx(1, abs=0.05)
        assert statistics["empty"] == pytest.approx(statistics["empty_poisson"], abs=5e-4)


def test_loads_sum_to_the_weights():
    spec = HashSpec.tiles((50, 40), 1 / 4, tile=8)
    loads = hashing.bucket_loads(spec)
    assert loads.shape == (spec.n_buckets,) and loads.sum() == 2000


def test_poisson_pmf_is_a_distribution():
    p = hashing.poisson_pmf(8.0, 60)
    assert p.sum() == pytest.approx(1)
    assert (p * np.arange(61)).sum() == pytest.approx(8)
    assert p[3] == pytest.approx(8**3 * math.exp(-8) / 6)


def test_signs_are_fair():
    for hash in HASHES:
        assert abs(hashing.sign_statistics(HashSpec.elementwise((500, 400), 1 / 8, seed=3, hash=hash))["z"]) < 4


def test_multiply_shift_correlates_neighbours_and_the_others_do_not():
    def largest(hash, seed):
        spec = HashSpec.elementwise((200, 200), 1 / 8, seed=seed, hash=hash)
        return hashing.largest_autocorrelation(hashing.block_signs(spec), 12)[0]

    for seed in range(3):
        assert abs(largest("multiply_shift", seed)) > 0.3
        assert abs(largest("fmix32", seed)) < 0.03
        assert abs(largest("xxh32", seed)) < 0.03


def test_autocorrelation_finds_a_known_shift():
    stripes = np.tile([1, -1], (6, 8))  # alternates along a row
    c = hashing.autocorrelation(stripes, 2)
    assert c.shape == (3, 5)
    assert c[0, 2] == pytest.approx(1) and c[0, 3] == pytest.approx(-1) and c[1, 2] == pytest.approx(1)
    assert hashing.largest_autocorrelation(np.random.default_rng(0).random((40, 40)), 3)[1] != (0, 0)
    with pytest.raises(ValueError, match="reach"):
        hashing.autocorrelation(stripes, 6)
