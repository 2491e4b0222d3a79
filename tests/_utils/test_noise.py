from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gas_ext._utils.noise import image_grid, save_png, seed_labels, stacked_noise, take, to_uint8


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(-(2**40), 2**40), max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_noise_of_a_seed_does_not_depend_on_its_batch(seeds, shape, dtype):
    batch = stacked_noise(seeds, shape, dtype)
    assert batch.shape == (len(seeds), *shape)
    assert batch.dtype == dtype
    for seed, noise in zip(seeds, batch, strict=True):
        assert torch.equal(noise, stacked_noise([seed], shape, dtype)[0])


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    stacked_noise([0, 1], (4,))
    assert torch.equal(before, torch.get_rng_state())


def test_labels_follow_the_seed():
    assert seed_labels([0, 3, 13, 29], 10).tolist() == [0, 3, 3, 9]
    assert seed_labels([], 10).shape == (0,)


def test_to_uint8_rounds_to_the_nearest_level():
    levels = torch.arange(256, dtype=torch.float64)
    exact = levels / 127.5 - 1
    assert torch.equal(to_uint8(exact), levels.to(torch.uint8))
    assert torch.equal(to_uint8(exact + 0.4 / 127.5), levels.to(torch.uint8))
    assert torch.equal(to_uint8(exact - 0.4 / 127.5), levels.to(torch.uint8))


def test_to_uint8_truncates_as_the_scripts_of_latent_diffusion():
    images = torch.linspace(-1.2, 1.2, 5001)
    cut = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_uint8(images, truncate=True), cut)
    assert 0.4 < (to_uint8(images) != cut).float().mean() < 0.5  # all that a pixel can be, and some beyond


def test_grid_puts_every_image_in_its_cell():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    grid = image_grid(images, columns=2, padding=1, background=-1.0)
    assert grid.shape == (3, 10, 11)
    for index in range(5):
        top, left = 1 + 3 * (index // 2), 1 + 5 * (index % 2)
        assert (grid[:, top : top + 2, left : left + 4] == index).all()
    assert (grid[:, 7:9, 6:10] == -1).all()  # the empty sixth cell
    assert (grid[:, :, 5] == -1).all()


def test_grid_names_the_wrong_shape():
    with pytest.raises(ValueError, match="batch, channels"):
        image_grid(torch.zeros(3, 4, 4), columns=2)
    with pytest.raises(ValueError, match="columns"):
        image_grid(torch.zeros(1, 1, 4, 4), columns=0)


@pytest.mark.parametrize(("channels", "truncate"), [(1, False), (3, False), (3, True)])
def test_png_holds_the_quantized_pixels(tmp_path, channels, truncate):
    image = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / "new" / "image.png"
    save_png(image, path, scale=2, truncate=truncate)
    with Image.open(path) as opened:
        assert opened.size == (14, 10)
        pixel = opened.getpixel((12, 4))
    found = [pixel] if channels == 1 else list(pixel)
    assert found == to_uint8(image[:, 2, 6], truncate=truncate).tolist()
    assert [file.name for file in path.parent.iterdir()] == ["image.png"]


def test_png_failure_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        save_png(torch.zeros(2, 4, 4), tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []


def test_take_preserves_the_type_of_container():
    class Pair(NamedTuple):
        label: torch.Tensor
        scale: torch.Tensor | None

    found = take(Pair(torch.arange(5), None), torch.tensor([3, 1]))
    assert isinstance(found, Pair)
    assert found.label.tolist() == [3, 1]
    assert found.scale is None
    for container in (list, tuple):
        found = take(container([torch.arange(5)]), slice(1, 3))
        assert isinstance(found, container)
        assert found[0].tolist() == [1, 2]
