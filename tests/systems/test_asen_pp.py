"""ASEN++'s local branch: regions, crops, when it joins, and its embeddings."""

import numpy as np
import pytest
import torch
from torch import Tensor

from m3lib.systems.asen_pp import ASENpp, crop, find_regions
from m3lib.systems.base import Outputs
from reference import as_float64, asen_pp_local, cut_out, in_float64, levels, region, state_of
from tiny import OWN, TAXONOMY, generator, make_system, make_variant, make_whole_system, unit_rows

N = TAXONOMY.num_attributes
B, SIDE = 3, 48  # a 3 x 3 map
THRESHOLD = 0.1


def random_maps(count: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Softmax maps, from almost even ones to almost one-hot ones."""
    sharpness = torch.linspace(0.1, 30, count)[:, None]
    return (sharpness * torch.rand(count, shape[0] * shape[1], generator=generator(seed))).softmax(1).view(-1, *shape)


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.9])
@pytest.mark.parametrize(
    ("shape", "sides"),
    [((3, 3), (48, 48)), ((2, 5), (32, 80)), ((4, 3), (57, 40)), ((1, 4), (16, 64)), ((2, 3), (40, 60))],
    ids=str,
)
def test_regions_against_a_naive_loop(shape, sides, threshold):
    maps = random_maps(8, shape, seed=round(10 * threshold))
    got = find_regions(maps, sides, threshold)
    cut = np.floor(255 * threshold) + 1
    checked = set()
    for alpha, found in zip(as_float64(maps), got.tolist(), strict=True):
        if np.abs(levels(alpha, sides) - cut).min() > 1e-3:  # otherwise float32 may round a pixel to the other side
            assert found == pytest.approx(region(alpha, sides, threshold))
            checked.add(tuple(found))
    assert len(checked) > 3 or threshold == 0.1
    assert checked


def bright(*cells: tuple[int, int], shape: tuple[int, int] = (3, 3)) -> Tensor:
    map_ = torch.zeros(1, *shape)
    for cell in cells:
        map_[0][cell] = 1.0
    return map_


# One cell of a 3 x 3 map at 48 px falls off by 1/16 a pixel from its centre at 23.5, and peaks at (31/32)^2: a row
# stays above 26/255 of that up to 14.4 pixels away. In a corner it is flat up to 7.5, and stays so up to 14.4 further.
ROW = [(1, j) for j in range(6)]
REGIONS = [
    (bright((1, 1)), (48, 48), (10, 10, 28, 28)),
    (bright((0, 0)), (48, 48), (0, 0, 22, 22)),
    (bright((2, 2)), (48, 48), (26, 26, 22, 22)),
    (bright((0, 0), (2, 2)), (48, 48), (0, 0, 48, 48)),  # the box of both, not one of them
    (bright((0, 0), (0, 1), (0, 2)), (48, 48), (0, 0, 48, 48)),  # a bar at the border: its square is moved inside
    (bright((3, 0), (3, 1), shape=(4, 4)), (64, 64), (26, 0, 38, 38)),  # and this one only as far as needed
    (bright(*ROW, shape=(3, 6)), (48, 96), (0, 0, 48, 96)),  # wider than the short side: cut to the image
    (bright((1, 1), (1, 2), (1, 3), (1, 4), shape=(3, 6)), (48, 96), (0, 10, 48, 76)),
    (bright((1, 0), (2, 0), (3, 0), (4, 0), shape=(6, 3)), (96, 48), (10, 0, 76, 48)),
    (torch.full((1, 3, 3), 1 / 9), (48, 64), (0, 0, 48, 64)),  # constant
    (torch.full((1, 1, 1), 1.0), (16, 16), (0, 0, 16, 16)),
]


@pytest.mark.parametrize(("maps", "sides", "expected"), REGIONS, ids=[str(r[2]) for r in REGIONS])
def test_regions_by_hand(maps, sides, expected):
    assert find_regions(maps, sides, THRESHOLD).tolist() == [list(expected)]
    assert region(as_float64(maps[0]), sides, THRESHOLD) == pytest.approx(expected)  # the reference agrees


def test_a_threshold_that_nothing_exceeds_keeps_the_whole_image():
    assert find_regions(bright((1, 1)), (48, 64), 1.0).tolist() == [[0, 0, 48, 64]]


CUTS = torch.tensor([[0, 0, 20, 26], [3, 4, 7, 7], [0, 19, 7, 7], [5.5, 2.5, 9, 9], [13, 0, 7, 3], [2, 3, 18, 18.0]])


@pytest.mark.parametrize("sides", [(7, 5), (16, 16), (1, 3)])
def test_crops_against_bilinear_sampling_point_by_point(sides):
    images = torch.randn(len(CUTS), 3, 20, 26, generator=generator())
    got = crop(images, CUTS, sides)
    for k, cut in enumerate(CUTS.tolist()):
        np.testing.assert_allclose(got[k], cut_out(as_float64(images[k]), cut, sides), atol=2e-5)


def make_images(size: int = B, sides: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.randn(size, 3, *sides, generator=generator())


CASES = [
    {},
    {"queries": "one_hot"},
    {"attention_batch_norm": True},
    {"input_scale": 0.7, "local_size": 0.6, "box_threshold": 0.5},
]


@pytest.mark.parametrize("sides", [(48, 48), (48, 80)], ids=str)
@pytest.mark.parametrize("model", CASES, ids=str)
def test_the_local_branch_against_its_formula(model, sides):
    """From the global map to the embedding, one image and one attribute at a time (the crop's grid is float32)."""
    system, images = make_whole_system("asen_pp", **model).double().eval(), make_images(2, sides).double()
    settings, w = make_variant("asen_pp", **model).model, state_of(system)
    read = [max(16, round(settings.input_scale * side)) for side in sides]
    shape = [-(-side // 16) for side in read]
    local = [max(16, round(settings.input_scale * settings.local_size * min(sides)))] * 2
    with in_float64():
        outputs = system(images)
        for b, image in enumerate(as_float64(images)):
            for n in range(N):
                alpha = as_float64(outputs.attribute_maps[b, n]).reshape(shape)
                cut = cut_out(image, region(alpha, sides, settings.box_threshold), local)
                x = as_float64(system.local_backbone(torch.from_numpy(cut)[None]))[0]
                expected = asen_pp_local(w, x, n, OWN.numpy())
                np.testing.assert_allclose(as_float64(outputs.local[b, n]), expected, rtol=1e-4, atol=1e-5)


def stage_loss(**weights: float):
    none = dict.fromkeys(("asen_triplet", "asen_pp_local", "asen_pp_align"), 0.0)
    return make_variant("asen_pp", loss=none | weights).stages[0].loss


def trunks_equal(system: ASENpp) -> bool:
    local = system.local_backbone.state_dict()
    return all(torch.equal(value, local[name]) for name, value in system.backbone.state_dict().items())


def test_before_it_joins_there_is_no_local_branch():
    system, images = make_system("asen_pp").eval(), make_images()
    system.enter_stage(stage_loss(asen_triplet=1))
    outputs = system(images)
    assert outputs.local is None
    assert system.retrieval_embedding(outputs) is outputs.attribute
    assert not trunks_equal(system)
    system.enter_stage(stage_loss(asen_pp_local=1))
    torch.testing.assert_close(system(images).attribute, outputs.attribute)


@pytest.mark.parametrize(
    "loss",
    [{"asen_pp_local": 0.1}, {"asen_pp_align": 0.1}, {"asen_triplet": 1, "asen_pp_local": 0.1, "asen_pp_align": 0.1}],
    ids=str,
)
def test_it_joins_as_a_copy_of_the_global_trunk(loss):
    system = make_system("asen_pp").eval()
    system.enter_stage(stage_loss(**loss))
    assert trunks_equal(system)
    assert system(make_images()).local is not None


def test_the_local_branch_joins_once_also_after_a_resume():
    """A later epoch of the stage must not overwrite what the local trunk has learned."""
    system = make_system("asen_pp")
    system.enter_stage(stage_loss(asen_pp_local=1))
    with torch.no_grad():
        for value in system.local_backbone.parameters():
            value.add_(1)
    resumed = make_system("asen_pp", seed=1)
    resumed.load_state_dict(system.state_dict())
    for each in (system, resumed):
        each.enter_stage(stage_loss(asen_pp_local=1))
        assert not trunks_equal(each)
        assert each.eval()(make_images(1)).local is not None
    system.enter_stage(stage_loss(asen_triplet=1))  # and does not leave again
    assert system(make_images(1)).local is not None


def test_the_local_trunk_can_keep_its_initial_weights():
    system = make_system("asen_pp", local_from_global=False)
    before = {name: value.clone() for name, value in system.local_backbone.state_dict().items()}
    system.enter_stage(stage_loss(asen_pp_local=1))
    assert all(torch.equal(value, before[name]) for name, value in system.local_backbone.state_dict().items())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.6, 1.0])
def test_stored_rows_multiply_to_the_weighted_cosines(beta):
    system = make_system("asen_pp", beta=beta)
    g, l = unit_rows(4, N, 10), unit_rows(4, N, 10, seed=1)  # noqa: E741
    stored = system.retrieval_embedding(Outputs(g, l))
    assert stored.shape == (4, N, 20)
    for i in range(4):
        for j in range(4):
            for n in range(N):
                expected = beta * float(g[i, n] @ g[j, n]) + (1 - beta) * float(l[i, n] @ l[j, n])
                assert float(stored[i, n] @ stored[j, n]) == pytest.approx(expected, abs=1e-5)


def test_no_gradient_runs_through_the_region():
    """The local embedding trains the local branch and the shared table, and nothing of what chose the region."""
    system, images = make_whole_system("asen_pp").train(), make_images().requires_grad_()
    local = system(images).local
    (local * torch.randn(local.shape, generator=generator())).sum().backward()
    reached = {n for n, p in system.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    local_parts = {n for n, _ in system.named_parameters() if n.startswith("local_")}
    assert reached == local_parts | {"attributes.table.rows"}
    assert bool((images.grad != 0).any())  # what the region shows does count


def test_a_store_of_twice_the_side_gives_crops_detail_that_the_small_image_lacks():
    """Waves of 3 stored pixels: images of half the side can't show them, and a crop of such an image neither.

    One network reads images of 48 px, and one the same images at 96 px with input_scale 0.5, cropped from 96 px.
    """
    wave = 0.5 + 0.5 * torch.sin(2 * torch.pi * (torch.arange(96) + 0.5) / 3)
    images = wave.expand(1, 3, 96, 96)
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    alpha, crops = bright((1, 1)).expand(1, N, 3, 3), []
    for given, scale in ((images, 0.5), (small, 1.0)):
        system = make_whole_system("asen_pp", input_scale=scale, local_size=1.0, box_threshold=0.5).eval()
        system.local_backbone.register_forward_pre_hook(lambda _, read: crops.append(read[0][0, 0, 0]))
        system.local_embeddings(given, alpha)
    _, left, _, wide = region(as_float64(alpha[0, 0]), (96, 96), 0.5)
    assert wide < 48 == len(crops[0]) == len(crops[1])  # so the crop is an enlarged part of the stored image
    truth = np.sin(2 * np.pi * (left + (np.arange(48) + 0.5) / 48 * wide) / 3)
    stored, lost = (abs(np.corrcoef(truth, as_float64(crop))[0, 1]) for crop in crops)
    assert stored > 0.9
    assert lost < 0.3
