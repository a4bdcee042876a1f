"""The harder data sets are what they say: sizes, labels, angles, backgrounds; the same bits each time; their cache."""

import functools
import hashlib
import math
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from hashedmm import load_variant, variants
from hashedmm.variants import CHECKSUMS, VARIANTS, Stream, rotate

DIGITS = ("basic", "rot", "bg_rand", "bg_img", "bg_img_rot")
QUICK = [("basic", None), ("bg_rand", None), ("rect", None), ("bg_img", "natural")]
LONG = [("rot", None), ("bg_img", None), ("bg_img_rot", None), ("bg_img_rot", "natural"), ("convex", None)]
NAMES = {"bg_img": "bg_img:procedural", "bg_img_rot": "bg_img_rot:procedural"}


read_once = functools.cache(variants._read)  # MNIST's files are unpacked and verified once for all tests here


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and MNIST from the checkout."""
    monkeypatch.setenv("HASHEDMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HASHEDMM_DATA", raising=False)
    monkeypatch.setattr(variants, "_read", read_once)
    return tmp_path / "cache" / "variants"


def make(name, seed=0, n_train=300, n_test=200, backgrounds="natural"):
    """A small set by its recipe. Natural backgrounds, which need no drawing, where that makes no difference."""
    return VARIANTS[name].make(seed, n_train, n_test, backgrounds)


def as_bytes(x):
    return np.rint(x * 255).astype(np.uint8)


def rows_of(*images):
    return {row.tobytes() for part in images for row in part}


# What is recorded


def test_published_sizes():
    """Larochelle et al. (2007) and the pages that came with it: training with validation set, and test set."""
    sizes = {name: (v.n_train, v.n_test, v.n_classes) for name, v in VARIANTS.items()}
    assert sizes == {
        **{name: (12000, 50000, 10) for name in DIGITS},
        "rect": (1200, 50000, 2),
        "convex": (8000, 50000, 2),
    }
    assert all(v.about for v in VARIANTS.values())
    kinds = {NAMES.get(name, name) for name in VARIANTS} | {"bg_img:natural", "bg_img_rot:natural"}
    assert CHECKSUMS.keys() == kinds and len(set(CHECKSUMS.values())) == len(kinds)


@pytest.mark.parametrize(
    ("name", "backgrounds"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)]
)
def test_full_size(name, backgrounds):
    data = load_variant(name, backgrounds=backgrounds) if backgrounds else load_variant(name)
    variant = VARIANTS[name]
    assert data.name == (f"{name}:{backgrounds}" if backgrounds else NAMES.get(name, name))
    assert (len(data.y_train), len(data.y_test), data.n_classes) == (variant.n_train, variant.n_test, variant.n_classes)
    sha = hashlib.sha256()
    parts = [as_bytes(data.x_train), as_bytes(data.x_test)]
    for x, y, pixels in ((data.x_train, data.y_train, parts[0]), (data.x_test, data.y_test, parts[1])):
        assert x.shape == (len(y), 784) and x.dtype == np.float32 and y.dtype == np.int64
        assert np.array_equal(x, np.divide(pixels, np.float32(255), dtype=np.float32)) and pixels.max() == 255
        sha.update(pixels.tobytes() + y.astype(np.uint8).tobytes())
        share = np.bincount(y, minlength=data.n_classes) / len(y)
        assert np.abs(share * data.n_classes - 1).max() < (0.2 if name in DIGITS else 0.1)
    assert sha.hexdigest() == CHECKSUMS[data.name]
    assert rows_of(parts[0]).isdisjoint(rows_of(parts[1]))


# A part of each recipe whose full size takes seconds: pixels, then labels, of 32 + 32 samples of seed 0.
RECORDED = {
    "rot": "3daeba73975c540fbdd8630ee3f5581f5e311fcd3c0e41ccb429f2848215e037",
    "bg_img": "0e3679c2cf9f47a91a1c3c854b3d5dcd2eba88ba8a89e34eed443612a138f63b",
    "bg_img_rot": "2ed723dc5134bde9916a66a6858345ab77c1a81be1395df2e7bb49cc3e40877f",
    "convex": "c470c7b2f393313a94189bd5ff526bb68bbf1907f08ecdc69ae4b80125d57796",
}


@pytest.mark.parametrize("name", RECORDED)
def test_bits_are_the_same_everywhere(name):
    train, test = make(name, 0, 32, 32)
    assert variants.checksum(train, test) == RECORDED[name]


def test_bits_of_procedural_pictures_are_the_same_everywhere():
    (picture,) = variants.procedural_pictures(0, 1)
    assert hashlib.sha256(picture.tobytes()).hexdigest() == PICTURE


PICTURE = "27b46f54089cdfc949a38d1a0f5155c3846917110ca3bc71d0503358d8f946a7"


@pytest.mark.parametrize("name", VARIANTS)
def test_seed_decides(name):
    first, again, other = make(name), make(name), make(name, seed=1)
    for part in (0, 1):
        for what in (0, 1):
            assert np.array_equal(first[part][what], again[part][what])
            assert not np.array_equal(first[part][what], other[part][what])


# Random numbers and angles


def test_stream_is_the_raw_words_of_pcg64():
    words = Stream(0, "a test").words(3)
    assert [hex(w) for w in words] == WORDS
    assert not np.array_equal(words, Stream(0, "another test").words(3))
    assert not np.array_equal(words, Stream(1, "a test").words(3))
    assert Stream(0, "a test").bytes(24).tolist() == [int(w) >> 8 * k & 255 for w in words for k in range(8)]
    assert Stream(0, "a test").turns(3).tolist() == [int(w) >> 32 for w in words]
    assert Stream(0, "a test").units(3).tolist() == [(int(w) >> 11) / 2**53 for w in words]
    assert Stream(0, "a test").below(10, 3).tolist() == [(int(w) >> 32) * 10 >> 32 for w in words]


WORDS = ["0x407f6eb04bbcb5a0", "0xf69469e9870b55af", "0x2f6807c860b2fd6a"]


def test_stream_is_uniform():
    drawn = Stream(0, "below").below(7, 70000)
    assert np.abs(np.bincount(drawn, minlength=7) - 10000).max() < 400 and drawn.max() == 6
    bound = np.arange(1, 1001)
    each = Stream(0, "below").below(bound, 1000)
    assert (each >= 0).all() and (each < bound).all() and abs((each / bound).mean() - 0.5) < 0.05


def test_circle_is_cosine_and_sine():
    turn = np.concatenate([Stream(0, "circle").turns(1000), np.arange(4, dtype=np.uint64) << np.uint64(30)])
    cosine, sine = variants.circle(turn)
    for t, c, s in zip(turn.tolist(), cosine.tolist(), sine.tolist(), strict=True):
        assert abs(c - math.cos(2 * math.pi * t / 2**32)) < 1e-15
        assert abs(s - math.sin(2 * math.pi * t / 2**32)) < 1e-15
    assert cosine[-4:].tolist() == [1, 0, -1, 0] and sine[-4:].tolist() == [0, 1, 0, -1]


# Rotation


@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_are_exact(rng, quarters):
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    turn = np.full(5, quarters << 30, np.uint64)
    assert np.array_equal(rotate(images, turn), np.rot90(images, quarters, axes=(1, 2)))


def rotated_pixel(image, degrees, row, column):
    """One pixel of a rotated image, from the definition: counterclockwise as one sees it, rows running downwards."""
    angle = math.radians(degrees)
    right, up = column - 13.5, 13.5 - row
    source_right = math.cos(angle) * right + math.sin(angle) * up  # the point turned back
    source_up = -math.sin(angle) * right + math.cos(angle) * up
    y, x = 13.5 - source_up, source_right + 13.5
    value = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < 28 and 0 <= j < 28:
                value += (1 - abs(y - i)) * (1 - abs(x - j)) * int(image[i, j])
    return value


@pytest.mark.parametrize("degrees", [10, 45, 100, 200.5, 275, 359])
def test_rotation_is_bilinear(rng, degrees):
    images = rng.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    turned = rotate(images, np.full(2, round(degrees / 360 * 2**32), np.uint64))
    for image, result in zip(images, turned, strict=True):
        expected = [[rotated_pixel(image, degrees, i, j) for j in range(28)] for i in range(28)]
        assert np.abs(result - np.array(expected)).max() <= 0.5 + 1e-4


def test_each_image_has_an_angle_of_its_own(rng):
    images = rng.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    turn = Stream(0, "angles").turns(7)
    assert all(np.array_equal(rotate(images, turn)[k], rotate(images[k : k + 1], turn[k : k + 1])[0]) for k in range(7))


# Digits


def test_basic_digits_are_those_of_mnist_each_once(mnist):
    known = {}
    for x, y in ((mnist.x_train, mnist.y_train), (mnist.x_test, mnist.y_test)):
        known |= {row.tobytes(): label for row, label in zip(as_bytes(x), y.tolist(), strict=True)}
    assert len(known) == 70000  # no image is twice in MNIST
    train, test = VARIANTS["basic"].make(0, 12000, 50000, "")
    labels = [known.pop(image.tobytes()) for part in (train, test) for image in part[0]]
    assert labels == [*train[1], *test[1]] and len(known) == 8000


def test_sets_of_digits_share_digits_angles_and_patches():
    (basic, labels), (rot, _), (rand, _), (img, _), (both, _) = (make(name)[0] for name in DIGITS)
    for name in DIGITS:
        assert np.array_equal(make(name)[0][1], labels)
    angles = Stream(0, "angles, train").turns(300)
    assert np.array_equal(rot, rotate(basic, angles))
    assert np.abs(np.bincount(angles.astype(np.int64) >> 30, minlength=4) - 75).max() < 30
    for digits, result in ((basic, rand), (basic, img), (rot, both)):
        assert (result >= digits).all() and (result[digits == 255] == 255).all()
        assert (result[digits == 0] > 0).mean() > 0.9
    bare = (basic == 0) & (rot == 0)
    assert np.array_equal(img[bare], both[bare]) and not np.array_equal(img[bare], rand[bare])


def test_noise_is_uniform_and_only_brightens_dark_pixels():
    digits, noisy = make("basic")[0][0], make("bg_rand")[0][0]
    changed = noisy != digits
    assert (noisy[changed] > digits[changed]).all()
    noise = noisy[digits == 0]
    counts = np.bincount(noise, minlength=256)
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
    # A pixel of grey level g shows noise where that is more.
    grey = (digits > 100) & (digits < 150)
    assert abs(changed[grey].mean() - (255 - digits[grey].astype(float)).mean() / 256) < 0.03


# Pictures


def test_patches_are_those_with_texture(rng):
    pictures = np.full((2, 60, 70), 90, np.uint8)
    pictures[0, :, 40:] = rng.integers(0, 256, (60, 30), dtype=np.uint8)
    pictures[1, 10:30, 5:25] += rng.integers(0, 60, (20, 20), dtype=np.uint8)
    patches = variants.Patches(pictures)
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (28, 28), axis=(1, 2)).reshape(-1, 28, 28)
    deviation = windows.reshape(len(windows), -1).std(axis=1)
    assert 0 < (deviation < 16).mean() < 1
    assert np.array_equal(patches.places, np.flatnonzero(deviation >= 16))
    textured = windows[deviation >= 16]
    for half in (0, 1):
        drawn = rows_of(patches.draw(Stream(0, "patches"), 2000, half))
        assert drawn <= rows_of(textured[half::2]) and len(drawn) > 0.9 * len(textured) / 2


def test_procedural_pictures_look_alike_at_every_scale():
    pictures = variants.procedural_pictures(3, 2)
    assert pictures.shape == (2, 512, 512) and not np.array_equal(*pictures)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None, :])
    for picture in pictures.astype(float):
        power = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
        at = [power[(frequency > f) & (frequency < 1.5 * f)].mean() for f in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)]
        slope = np.polyfit(np.log([1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4]), np.log(at), 1)[0]
        assert -3.2 < slope < -1.5  # of natural pictures about -2
        assert np.percentile(picture, 1) < 60 and np.percentile(picture, 99) > 170


def test_natural_picture_is_verified(monkeypatch, tmp_path):
    picture = variants.natural_picture()
    assert picture.shape == (600, 512) and picture.dtype == np.uint8
    folder = tmp_path / "sample_data"
    folder.mkdir()
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(RuntimeError, match="cannot be read.*hashedmm\\[plot\\].*procedural"):
        variants.natural_picture()
    Image.fromarray(picture).save(folder / variants.PHOTOGRAPH, quality=50)
    with pytest.raises(RuntimeError, match="expected pixels with the SHA-256.*procedural"):
        load_variant("bg_img", backgrounds="natural")
    assert variants._origin("bg_img", "auto") == "procedural"
    (folder / variants.PHOTOGRAPH).write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match="cannot be read"):
        variants.natural_picture()


def test_backgrounds_are_chosen_by_argument_alone():
    assert variants._origin("bg_img", None) == "procedural"
    assert variants._origin("bg_img_rot", "auto") == "natural"  # the tests' own requirements have the picture
    with pytest.raises(ValueError, match="backgrounds: expected one of procedural, natural, auto, got 'photo'"):
        load_variant("bg_img", backgrounds="photo")
    with pytest.raises(ValueError, match="backgrounds: 'rot' has no pictures"):
        load_variant("rot", backgrounds="procedural")


# Drawings


def test_rectangles_are_outlines_whose_longer_side_is_the_label():
    for images, labels in make("rect", n_train=1200, n_test=1000):
        assert np.isin(images, (0, 255)).all()
        heights, widths = [], []
        for image, label in zip(images, labels, strict=True):
            rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
            top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
            expected = np.zeros((28, 28), np.uint8)
            expected[[top, bottom], left : right + 1] = 255
            expected[top : bottom + 1, [left, right]] = 255
            assert np.array_equal(image, expected)
            heights.append(bottom - top + 1)
            widths.append(right - left + 1)
            assert label == (heights[-1] > widths[-1]) and abs(heights[-1] - widths[-1]) >= 3
        assert set(heights) == set(widths) == set(range(1, 29))


def hull_filled(white):
    """All pixels in the convex hull of a region of two pixels or more: Andrew's monotone chain, in integers."""
    points = sorted((int(x), int(y)) for y, x in np.argwhere(white))

    def chain(points):
        hull = []
        for x, y in points:
            while len(hull) > 1:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        return hull

    corners = chain(points)[:-1] + chain(points[::-1])[:-1]
    y, x = np.mgrid[:28, :28]
    (low_x, low_y), (high_x, high_y) = np.min(points, axis=0), np.max(points, axis=0)
    inside = (low_x <= x) & (x <= high_x) & (low_y <= y) & (y <= high_y)  # for a hull that is a line
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    return inside


def test_convex_labels_are_true():
    (train, labels), (test, test_labels) = make("convex", n_train=1000, n_test=1000)
    assert np.isin(train, (0, 255)).all()
    for image, label in zip([*train[:500], *test[:500]], [*labels[:500], *test_labels[:500]], strict=True):
        assert np.array_equal(hull_filled(image > 0), image > 0) == label
    pixels = (np.concatenate([train, test]) > 0).sum(axis=(1, 2))
    label = np.concatenate([labels, test_labels])
    assert pixels.min() >= 10 and pixels[label == 1].min() >= 19 and (pixels == 784).mean() < 0.01
    # Balanced: the number of pixels says little.
    assert abs(pixels[label == 1].mean() / pixels[label == 0].mean() - 1) < 0.15
    assert abs(label.mean() - 0.5) < 0.05


def test_is_convex_agrees_with_the_hull(rng):
    """Convex regions with single pixels taken away or added, at edges above all, and small scattered ones."""
    images, labels = make("convex", n_train=400, n_test=1)[0]
    regions = list(images[labels == 1] > 0)
    for region in list(regions):
        y, x = np.argwhere(region)[rng.integers(region.sum())]
        without = region.copy()
        without[y, x] = False
        moved = region.copy()
        moved[np.clip(y + rng.integers(-2, 3), 0, 27), np.clip(x + rng.integers(-2, 3), 0, 27)] ^= True
        regions += [without, moved]
    for count in range(1, 6):
        for _ in range(40):
            scattered = np.zeros((28, 28), bool)
            scattered[tuple(rng.integers(10, 10 + count, (2, count)))] = True
            regions.append(scattered)
    expected = [np.array_equal(hull_filled(region), region) if region.sum() > 1 else True for region in regions]
    assert 0.2 < np.mean(expected) < 0.8
    assert variants.is_convex(np.array(regions)).tolist() == expected


@pytest.mark.parametrize("name", ["rect", "convex"])
def test_drawings_of_the_training_part_are_not_tested(name):
    """Also where a test set drawn without a look at the training part would share some with it."""
    (train, _), (test, _) = make(name, n_train=1200, n_test=3000)
    assert rows_of(train).isdisjoint(rows_of(test))
    batch = {"rect": variants.rectangles, "convex": variants.convex}[name]
    unfiltered, _ = variants._gather(batch, Stream(0, f"{batch.__name__}, test"), 3000, set())
    assert not rows_of(train).isdisjoint(rows_of(unfiltered))


# The cache


@pytest.fixture
def small_rot(monkeypatch):
    """The recipe of "rot" at a small size, of which seed 1 is loaded: no recorded checksum holds."""
    small = VARIANTS["rot"]._replace(n_train=60, n_test=40)
    monkeypatch.setitem(VARIANTS, "rot", small)
    return small


def equal(a, b):
    return a.name == b.name and all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ("x_train", "y_train", "x_test", "y_test")
    )


def test_cache_hit_gives_the_same_bits_without_the_recipe_or_mnist(cache, small_rot, monkeypatch, tmp_path):
    made = load_variant("rot", seed=1)
    assert made.name == "rot:seed=1"
    (file,) = cache.iterdir()
    assert file == variants.cache_file("rot", 1)

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setitem(VARIANTS, "rot", small_rot._replace(make=fail))
    monkeypatch.setenv("HASHEDMM_DATA", str(tmp_path / "nowhere"))
    assert equal(load_variant("rot", seed=1), made)
    part = load_variant("rot", seed=1, n_train=7, n_test=3)
    assert part.name == "rot:seed=1[:7, :3]" and np.array_equal(part.x_train, made.x_train[:7])
    with pytest.raises(AssertionError, match="made again"):
        load_variant("rot", seed=2)


def altered(content):
    return content[:-1] + bytes([content[-1] ^ 1])


class Bomb:
    """What a pickle that is loaded would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (altered, "SHA-256"),
        (lambda content: content[: len(content) // 2], "arrays do not agree"),
        (lambda content: b"", "empty file"),
        (lambda content: pickle.dumps(Bomb(), protocol=4), "a pickle"),
    ],
    ids=["one bit", "half", "empty", "pickle"],
)
def test_damaged_file_is_made_again(cache, small_rot, damage, says):
    made = load_variant("rot", seed=1)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.warns(RuntimeWarning, match=f"(?s)rot is made again.*{re.escape(file.name)}.*{says}"):
        again = load_variant("rot", seed=1)
    assert equal(again, made) and file.read_bytes() == content


def test_file_of_another_set_is_not_taken(cache, small_rot):
    made = load_variant("rot", seed=1)
    load_variant("rot", seed=2)
    variants.cache_file("rot", 2).replace(variants.cache_file("rot", 1))
    with pytest.warns(RuntimeWarning, match="expected rot of seed 1, got another data set"):
        assert equal(load_variant("rot", seed=1), made)


def test_recipe_of_another_version_has_another_file(monkeypatch):
    file = variants.cache_file("bg_img:natural", 1)
    monkeypatch.setitem(CHECKSUMS, "bg_img:natural", "f" * 64)
    assert variants.cache_file("bg_img:natural", 1) != file
    assert ":" not in file.name  # for all file systems


def test_cache_that_cannot_be_written_costs_a_warning(tmp_path, small_rot, monkeypatch):
    made = load_variant("rot", seed=1)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HASHEDMM_CACHE", str(tmp_path / "file"))
    with (
        pytest.warns(RuntimeWarning, match="rot is made again.*Not a directory"),
        pytest.warns(RuntimeWarning, match="rot is not kept for the next time"),
    ):
        assert equal(load_variant("rot", seed=1), made)


def test_what_is_made_quickly_is_not_kept(cache):
    load_variant("rect", n_train=10, n_test=10)
    assert not cache.exists()


def test_other_bits_are_an_error(monkeypatch):
    monkeypatch.setitem(CHECKSUMS, "rect", "0" * 64)
    with pytest.raises(RuntimeError, match="rect: this machine makes other bits.*report"):
        load_variant("rect")
    assert load_variant("rect", seed=1).name == "rect:seed=1"


# Arguments


@pytest.mark.parametrize("name", ["mnist", "Rot", 3, None])
def test_unknown_name_lists_the_names(name):
    with pytest.raises(ValueError, match="name: expected one of basic, rot, bg_rand, bg_img, bg_img_rot, rect, convex"):
        load_variant(name)


@pytest.mark.parametrize(
    ("error", "arguments", "says"),
    [
        (TypeError, {"seed": 1.5}, "seed must be an integer"),
        (TypeError, {"seed": True}, "seed must be an integer"),
        (ValueError, {"seed": -1}, "seed must be from 0"),
        (ValueError, {"n_train": 0}, "n_train: expected 1 to 12000"),
        (ValueError, {"n_test": 50001}, "n_test: expected 1 to 50000"),
        (TypeError, {"n_test": 10.0}, "n_test: expected an integer"),
    ],
)
def test_arguments_are_checked_before_any_work(error, arguments, says, monkeypatch):
    monkeypatch.setattr(variants, "_cached", lambda *_: pytest.fail("worked"))
    with pytest.raises(error, match=says):
        load_variant("basic", **arguments)


def test_mnist_that_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HASHEDMM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="HASHEDMM_DATA"):
        load_variant("basic")
    assert load_variant("rect", n_train=1, n_test=1).name == "rect[:1, :1]"  # needs no digits
