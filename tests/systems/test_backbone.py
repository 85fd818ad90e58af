"""The backbone: features by position, scaled inputs, weights, and one sentence for each mistake."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3lib import systems
from m3lib.errors import InputError
from m3lib.systems import backbone
from m3lib.systems.backbone import Backbone
from m3lib.systems.base import System
from reference import as_float64
from tiny import BACKBONE, TAXONOMY, generator, make_system, make_variant


def build(**model: object) -> System:
    return systems.build(make_variant("classifier", **model), TAXONOMY)


def make_images(*sides: int) -> Tensor:
    return torch.randn(2, 3, *sides, generator=generator())


@pytest.mark.parametrize("sides", [(48, 48), (33, 64)])
def test_features_are_the_stride_16_map_by_position(sides):
    own, images = make_system("classifier").eval().backbone, make_images(*sides)
    map_, X = own.trunk((images - own.mean) / own.std)[-1], own(images)
    rows, columns = map_.shape[2:]
    assert (rows, columns) == (3, sides[1] // 16)
    assert X.shape == (2, rows * columns, own.channels)
    for j in range(rows * columns):
        assert torch.equal(X[:, j], map_[:, :, j // columns, j % columns])


SWIN = {"img_size": 64, "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}


def test_features_of_a_trunk_with_channels_last():
    own = Backbone("swin_tiny_patch4_window7_224", SWIN)
    assert own(make_images(64, 64)).shape == (2, 16, own.channels)


def naive_shrink(image: np.ndarray, size: int) -> np.ndarray:
    """The last axis by a triangle as wide as one output pixel, cut at the border."""
    scale = image.shape[-1] / size
    columns = []
    for i in range(size):
        share = np.array([max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / scale) for j in range(image.shape[-1])])
        columns.append(image @ (share / share.sum()))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("scale", [0.5, 0.4])
def test_a_smaller_input_is_a_filtered_one(scale):
    images = make_images(60, 80)
    own = build(input_scale=scale).eval().backbone
    read = []
    own.trunk.conv1.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0] * own.std + own.mean))
    own(images)
    rows = naive_shrink(as_float64(images).swapaxes(2, 3), round(60 * scale)).swapaxes(2, 3)
    np.testing.assert_allclose(read[0], naive_shrink(rows, round(80 * scale)), atol=1e-5)
    own(make_images(20, 64))
    assert read[1].shape[2:] == (16, round(64 * scale))  # no side is smaller than one position


def test_trunks_of_different_architectures_are_not_copied():
    target = Backbone("resnet10t", BACKBONE | {"channels": [8, 8, 24, 16]})
    with pytest.raises(InputError, match=r"model\.local_from_global copies one backbone to another architecture"):
        backbone.copy_trunk(Backbone("resnet10t", BACKBONE), target)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": "resnet10"}, r"model\.backbone_options .* don't fit 'resnet10': Unknown model"),
        (
            {"backbone_options": BACKBONE | {"output_stride": 8}},
            r"model\.backbone 'resnet10t' gives features of stride \[2, 4, 8, 8, 8\], none of 16",
        ),
        ({"backbone_options": {"colour": "red"}}, r"model\.backbone_options .*'colour'.* don't fit 'resnet10t'"),
        ({"backbone_options": {"stem_width": "wide"}}, r"model\.backbone_options .* don't fit 'resnet10t'"),
        ({"backbone_options": {"channels": [8, 8]}}, r"model\.backbone_options .* don't fit 'resnet10t'"),
        ({"weights": "/nowhere/trunk.safetensors"}, r"no weights from /nowhere/trunk.safetensors .*model\.weights"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_backbone_that_timm_refuses_is_one_sentence(model, message):
    with pytest.raises(InputError, match=message) as error:
        build(**model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["local_backbone_options", "local_weights"])
def test_a_local_backbone_that_timm_refuses_names_its_setting(setting):
    value = {"local_backbone_options": {"colour": "red"}, "local_weights": "/nowhere/trunk.safetensors"}[setting]
    with pytest.raises(InputError, match=rf"model\.{setting}"):
        systems.build(make_variant("asen_pp", **{setting: value}), TAXONOMY)


def test_pretrained_without_internet_advises_which_file_to_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", refuse)
    advice = (
        r"no weights from timm's hub for 'resnet10t' .*fetch model\.safetensors of .*timm/resnet10t.* "
        r"save it as data/weights/resnet10t\.safetensors, and set model\.weights: data/weights"
    )
    with pytest.raises(InputError, match=advice):
        build(backbone_options={}, pretrained=True)


def refuse(*_: object, **__: object) -> None:
    raise OSError("no route to the hub\nand a second line")


@pytest.fixture
def weight_file(tmp_path):
    """A whole classification model's weights, as timm publishes them."""
    torch.manual_seed(99)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in BACKBONE.items()}
    save_file(timm.create_model("resnet10t", **options).state_dict(), tmp_path / "trunk.safetensors")
    return tmp_path / "trunk.safetensors"


def test_the_trunk_starts_from_a_local_weight_file(weight_file):
    stored = load_file(weight_file)
    torch.manual_seed(0)
    trunk = build(weights=str(weight_file)).backbone.trunk.state_dict()
    assert len(trunk) > 20
    for name, value in trunk.items():
        assert torch.equal(value, stored[name]), name


@pytest.mark.parametrize("source", ["m3", "asen_pp"])
def test_either_trunk_can_start_from_a_model_trained_here(tmp_path, source):
    """Its own backbone, not its local one."""
    trained = make_system(source, seed=7)
    save_file(trained.state_dict(), tmp_path / "m3.safetensors")
    path = str(tmp_path / "m3.safetensors")
    started = systems.build(make_variant("asen_pp", weights=path, local_weights=path), TAXONOMY)
    for part in (started.backbone, started.local_backbone):
        found = part.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in trained.backbone.state_dict().items())


def test_a_weight_file_of_another_model_or_cut_short_is_refused(weight_file, tmp_path):
    with pytest.raises(InputError, match=r"trunk\.safetensors.*check model\.weights"):
        build(backbone_options=BACKBONE | {"channels": [8, 8, 24, 16]}, weights=str(weight_file))
    (tmp_path / "cut.safetensors").write_bytes(weight_file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut\.safetensors.*check model\.weights"):
        build(weights=str(tmp_path / "cut.safetensors"))
    save_file(make_system("m3").state_dict(), tmp_path / "m3.safetensors")
    with pytest.raises(InputError, match=r"m3\.safetensors.*check model\.weights"):
        build(backbone_options=BACKBONE | {"channels": [8, 8, 24, 16]}, weights=str(tmp_path / "m3.safetensors"))
