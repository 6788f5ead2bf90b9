"""Each augmentation against a slow, obvious version of itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from resnet_train.data.augment import CropMode, Draws, crop_flip, cutmix, cutout, mixup, normalise


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def crops(index: Tensor, offset_y: Tensor, offset_x: Tensor, flip: Tensor) -> Draws:
    """Draws of which only crop and flip count."""
    return Draws(index, offset_y, offset_x, flip, cutout_y=index, cutout_x=index)


def random_images(count: int, height: int, width: int) -> Tensor:
    """``(count, 3, height, width)``, nowhere zero, in the memory format of `normalise`."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) + 0.5
    return images.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------- draws


def test_draws_are_cut_and_joined_as_one() -> None:
    columns = [torch.arange(7) + 10 * number for number in range(6)]
    draws = Draws(*columns)
    assert len(draws) == 7
    assert len(draws[2:5]) == 3
    joined = Draws.cat([draws[5:7], draws[0:2]]).to(torch.device("cpu"))
    for name, column in zip(["index", "offset_y", "offset_x", "flip", "cutout_y", "cutout_x"], columns, strict=True):
        assert getattr(joined, name).tolist() == [column[place] for place in (5, 6, 0, 1)]
    assert Draws.cat([draws]) is draws


# ------------------------------------------------------------------------------------------------------------ crop_flip


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    ("height", "width", "padding"), [(6, 5, 0), (6, 5, 1), (5, 6, 4), (32, 32, 4), (4, 4, 3), (3, 7, 2)]
)
def test_crop_flip_is_pad_crop_and_hflip(mode: CropMode, height: int, width: int, padding: int, channels: int) -> None:
    """Bit for bit, for every offset and both directions, on images drawn with repetition and out of order."""
    images = random_bytes(5, height, width, channels)
    offsets = range(2 * padding + 1)
    draws = list(itertools.product(offsets, offsets, [False, True]))
    index = torch.tensor([(7 * position + 3) % 5 for position in range(len(draws))])
    offset_y, offset_x, flip = (torch.tensor(column) for column in zip(*draws, strict=True))
    out = crop_flip(images, crops(index, offset_y, offset_x, flip), padding=padding, mode=mode)
    assert (out.shape, out.dtype) == ((len(draws), height, width, channels), torch.uint8)
    for position, (top, left, mirrored) in enumerate(draws):
        image = images[index[position]].permute(2, 0, 1)  # (C, H, W)
        padded = TF.pad(image, [padding], padding_mode="constant" if mode == "zeros" else "reflect")
        expected = TF.crop(padded, top, left, height, width)
        expected = TF.hflip(expected) if mirrored else expected
        assert torch.equal(out[position].permute(2, 0, 1), expected), (top, left, mirrored)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_zeros_beyond_the_border_or_its_mirror_image(mode: CropMode) -> None:
    row = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    images = row[None, None, :, None].expand(1, 4, 4, 3)
    shift = torch.tensor([0, 0, 4, 4])
    out = crop_flip(
        images,
        crops(torch.zeros(4, dtype=torch.long), torch.full((4,), 2), shift, torch.tensor([False, True, False, True])),
        padding=2,
        mode=mode,
    )
    expected = {
        "zeros": [[0, 0, 1, 2], [2, 1, 0, 0], [3, 4, 0, 0], [0, 0, 4, 3]],
        "reflect": [[3, 2, 1, 2], [2, 1, 2, 3], [3, 4, 3, 2], [2, 3, 4, 3]],
    }
    assert out[:, 0, :, 0].tolist() == expected[mode]


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", [0, 4])
def test_centre_crop_without_flip_changes_nothing(mode: CropMode, padding: int) -> None:
    images, index = random_bytes(6, 32, 32, 3), torch.tensor([5, 0, 3, 3])
    before, centre = images.clone(), torch.full((4,), padding)
    out = crop_flip(images, crops(index, centre, centre, torch.zeros(4).bool()), padding=padding, mode=mode)
    assert torch.equal(out, images[index])
    assert torch.equal(images, before)


# ------------------------------------------------------------------------------------------------------------ normalise


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
)
def test_normalise_is_to_tensor_and_normalize(mean: list[float], std: list[float]) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    images = torch.stack([every_byte, every_byte.T, every_byte.flip(0)], dim=-1).repeat(2, 1, 1, 1)  # (2, 16, 16, 3)
    before = images.clone()
    out = normalise(images, torch.tensor(mean), torch.tensor(std))
    assert (out.shape, out.dtype) == ((2, 3, 16, 16), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    for image, result in zip(images, out, strict=True):
        expected = TF.normalize(TF.to_tensor(image.numpy()), mean, std)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- cutout


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 16])
def test_cutout_blanks_a_square_around_every_centre(size: int) -> None:
    """Every centre of a 5 x 6 image. The square is ``size`` wide, odd or even, and clipped at the border."""
    height, width = 5, 6
    centres = list(itertools.product(range(height), range(width)))
    images = random_images(len(centres), height, width)
    before = images.clone()
    centre_y, centre_x = (torch.tensor(column) for column in zip(*centres, strict=True))
    out = cutout(images, centre_y=centre_y, centre_x=centre_x, size=size)
    for position, (y, x) in enumerate(centres):
        for row, column in itertools.product(range(height), range(width)):
            blank = 0 <= row - (y - size // 2) < size and 0 <= column - (x - size // 2) < size
            expected = torch.zeros(3) if blank else images[position, :, row, column]
            assert torch.equal(out[position, :, row, column], expected), (y, x, row, column)
    assert torch.equal(images, before)


# -------------------------------------------------------------------------------------------------------- mixup, cutmix


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.7, 1.0])
def test_mixup_blends_images_and_targets(lam: float) -> None:
    images, targets, permutation = random_images(4, 3, 5), torch.eye(4), torch.tensor([2, 0, 3, 3])
    mixed, labels = mixup(images, targets, permutation=permutation, lam=lam)
    for i, j in enumerate([2, 0, 3, 3]):
        for c, y, x in itertools.product(range(3), range(3), range(5)):
            expected = lam * images[i, c, y, x].item() + (1 - lam) * images[j, c, y, x].item()
            assert mixed[i, c, y, x].item() == pytest.approx(expected, rel=1e-6)
        expected_labels = [lam * (k == i) + (1 - lam) * (k == j) for k in range(4)]
        assert labels[i].tolist() == pytest.approx(expected_labels, rel=1e-6)
    if lam == 1:
        assert torch.equal(mixed, images)
        assert torch.equal(labels, targets)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.36, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
def test_cutmix_pastes_a_rectangle_and_counts_what_it_pasted(lam: float, height: int, width: int) -> None:
    """For every centre, so at every border and corner: who shows where, and a label weight equal to the area."""
    images = torch.arange(1.0, 4.0).reshape(3, 1, 1, 1).expand(3, 3, height, width).contiguous()  # image i is i + 1
    before, targets, permutation = images.clone(), torch.eye(3), torch.tensor([1, 2, 0])
    box_height, box_width = int(height * (1 - lam) ** 0.5), int(width * (1 - lam) ** 0.5)
    for centre_y, centre_x in itertools.product(range(height), range(width)):
        mixed, labels = cutmix(images, targets, permutation=permutation, lam=lam, centre_y=centre_y, centre_x=centre_x)
        pasted = torch.zeros(height, width, dtype=torch.bool)
        for y, x in itertools.product(range(height), range(width)):
            in_rows = 0 <= y - (centre_y - box_height // 2) < box_height
            pasted[y, x] = in_rows and 0 <= x - (centre_x - box_width // 2) < box_width
        for i, j in enumerate([1, 2, 0]):
            expected = torch.where(pasted, j + 1.0, i + 1.0).expand(3, height, width)
            assert torch.equal(mixed[i], expected), (centre_y, centre_x)
            area = (mixed[i, 0] == j + 1).sum().item() / (height * width)
            assert labels[i, j].item() == pytest.approx(area, abs=1e-6)
            assert labels[i, i].item() == pytest.approx(1 - area, abs=1e-6)
    assert torch.equal(images, before)


def test_cutmix_pastes_the_asked_area_where_nothing_is_clipped() -> None:
    _, labels = cutmix(
        random_images(2, 32, 32), torch.eye(2), permutation=torch.tensor([1, 0]), lam=0.75, centre_y=16, centre_x=16
    )
    assert labels.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_memory_format_is_kept() -> None:
    images, targets, permutation = random_images(4, 8, 8), torch.eye(4), torch.tensor([1, 0, 3, 2])
    centre = torch.tensor([0, 3, 4, 7])
    for out in (
        cutout(images, centre_y=centre, centre_x=centre, size=4),
        mixup(images, targets, permutation=permutation, lam=0.3)[0],
        cutmix(images, targets, permutation=permutation, lam=0.3, centre_y=4, centre_x=4)[0],
    ):
        assert out.is_contiguous(memory_format=torch.channels_last)
